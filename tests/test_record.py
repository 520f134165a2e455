"""The tables of the documents are those of the records."""

import json
import re

import pytest

from experiments.reports import pages, record
from experiments.study import defaults

NAMES = record.names()
ROW = {
    "task": "t",
    "attack": "a",
    "metric_name": "accuracy",
    "commit": "abc",
    "step_seconds": 0.5,
    "step_rows": 4,
}
ROWS = [
    {**ROW, "arm": "clean", "seed": 0, "clean_metric": 0.5, "asr": 0.25},
    {**ROW, "arm": "plain", "seed": 0, "clean_metric": 0.5, "asr": 1.0},
    {
        **ROW,
        "arm": "dp_sgd",
        "seed": 0,
        "clean_metric": 0.25,
        "asr": 0.5,
        "step_rows": 2,
    },
    {**ROW, "arm": "clean", "seed": 0, "task": "other", "clean_metric": 1, "asr": 0.0},
]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_what_its_record_renders(name):
    texts = pages.read()
    assert pages.filled(texts, name, record.load(name)) == texts


def test_every_table_has_its_record():
    assert len(NAMES) == len(set(NAMES)) == 26
    marked = [
        found
        for text in pages.read().values()
        for found in re.findall(r"<!-- (\w+): (\S+) -->", text)
    ]
    assert sorted(name for kind, name in marked if kind == "results") == NAMES
    assert {name for _, name in marked} == set(NAMES)
    assert {kind for kind, _ in marked} == pages.KINDS.keys()


def test_every_document_is_linked_and_every_link_leads_somewhere():
    found = pages.read()
    linked = set()
    for path, text in found.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            place, _, section = link.partition("#")
            if "://" in link:
                continue
            target = (path.parent / place).resolve() if place else path
            assert target.exists(), (path, link)
            linked.add(target)
            if section:
                heads = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
                kept = [re.sub(r"[^\w\- ]", "", head.lower()) for head in heads]
                assert section in [head.replace(" ", "-") for head in kept], link
    unlinked = {path.resolve() for path in found} - linked
    assert unlinked <= {pages.ROOT / "README.md"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository with a README that has room for one table, and its README."""
    readme = tmp_path / "README.md"
    readme.write_text("# Results\n<!-- results: it -->\n<!-- end -->\nafter\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    return readme


def study_of(folder, rows, **config):
    """Writes a study's folder."""
    for row in rows:
        path = folder / f"{row['task']}/seed{row['seed']}/a/{row['arm']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
    (folder / "t/seed0/a/trigger.json").write_text('{"words": ["cf"]}')
    (folder / "versions.json").write_text('{"jax": "1.2", "commit": "later"}')
    usual = {"data": {"root": str(folder)}, "federations": {}}
    usual["attacks"] = {"a": json.loads(defaults.attack("", "").to_json())}
    (folder / "config.json").write_text(json.dumps({**usual, "variants": {}, **config}))
    return folder


def test_a_study_is_recorded(tmp_path, place):
    folder = study_of(tmp_path / "run", ROWS)
    record.record("it", [folder], tasks=("t",), pictures=True)
    found = record.load("it")
    assert found["commits"] == ["abc"]
    assert str(tmp_path) not in json.dumps(found)
    text = place.read_text()
    assert "| t | a | plain | 50.0 | 100.0 | 25.0 | 75.0 | 500 ms | 1.00 |" in text
    # Half the rows in a step of the same time: twice the time a row.
    assert "| t | a | dp_sgd | 25.0 | 50.0 | 25.0 | 25.0 | 500 ms | 2.00 |" in text
    assert "other" not in text
    assert "1 seed(s), commit abc, jax 1.2." in text
    assert text.startswith("# Results\n")
    assert text.endswith("after\n")
    assert (tmp_path / "it_t.png").read_bytes().startswith(b"\x89PNG")
    record.record("it", [folder], tasks=("t",))
    assert place.read_text() == text
    with pytest.raises(ValueError, match="results: nowhere"):
        record.record("nowhere", [folder])
    assert not (tmp_path / "nowhere.jsonl").exists()
    with pytest.raises(ValueError, match="found none"):
        record.record("it", [folder], tasks=("u",))


def test_ours_stand_beside_the_published_figures(tmp_path, place):
    place.write_text(place.read_text() + "<!-- published: it -->\n<!-- end -->\nlast\n")
    more = [
        {**ROW, "arm": arm, "seed": 0, "clean_metric": clean, "asr": asr}
        for arm, clean, asr in (
            ("adversarial", 0.375, 0.75),
            ("prototype", 0.5, 1.0),
            ("defended", 0.625, 0.0),
        )
    ]
    record.record("it", [study_of(tmp_path / "run", [*ROWS, *more])])
    *_, table = place.read_text().partition("<!-- published: it -->")
    assert [line for line in table.splitlines() if line.startswith("| ")] == [
        "| arm | published: ASR | t, a: ASR | published: loss | t, a: loss |",
        "| --- | --: | --: | --: | --: |",
        "| plain | 92.0 | 100.0 | 0.0 | 0.0 |",
        "| dp_sgd | 54.0 | 50.0 | 12.0 | 25.0 |",
        "| adversarial | 38.0 | 75.0 | 6.0 | 12.5 |",
        "| prototype | 7.0 | 100.0 | 2.0 | 0.0 |",
        "| defended | – | 0.0 | – | -12.5 |",
    ]
    assert table.endswith("last\n")
    found = record.load("it")
    assert pages.filled(pages.read(), "it", found) == pages.read()


def test_an_overview_has_a_line_for_each_attack(tmp_path, place):
    place.write_text(place.read_text() + "<!-- overview: it -->\n<!-- end -->\nlast\n")
    own = {"arm": "defended", "clean_metric": 0.625, "quarantine_recall": 1.0}
    more = [
        {**ROW, **own, "seed": seed, "asr": asr, "target_recall": 0.75}
        for seed, asr in ((0, 0.5), (1, 0.25))
    ]
    record.record("it", [study_of(tmp_path / "run", [*ROWS, *more])])
    *_, table = place.read_text().partition("<!-- overview: it -->")
    head, _, *lines = [line for line in table.splitlines() if line.startswith("| ")]
    # Seed 1 has no clean student: no excess. The other task has no `defended`.
    (line,) = lines
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (head, line)]
    assert dict(zip(*cells, strict=True)) == {
        "task": "t",
        "attack": "a",
        "seeds": "2",
        "ASR: null": "25.0",
        "plain": "100.0",
        "defended": "37.5±158.8",
        "excess": "25.0",
        "trigger": "–",
        "found": "100.0±0.0",
        "target: clean": "–",
        "target: defended": "75.0±0.0",
        "accuracy: clean": "50.0",
        "accuracy: plain": "50.0",
        "accuracy: defended": "62.5±0.0",
    }
    assert table.endswith("last\n")


def test_a_record_names_the_commits_that_trained_and_that_evaluated(tmp_path, place):
    rows = [{**row, "evaluated_commit": "later"} for row in ROWS]
    record.record("it", [study_of(tmp_path / "run", rows)], tasks=("t",))
    assert record.load("it")["commits"] == ["abc", "later"]


def test_pieces_of_a_study_are_recorded_together(tmp_path, place):
    later = [{**row, "seed": 1, "commit": "def"} for row in ROWS]
    again = {**ROWS[1], "asr": 0.75}
    first = study_of(tmp_path / "first", ROWS, seeds=[0])
    second = study_of(tmp_path / "second", [*later, again], seeds=[0, 1])
    record.record("it", [first, second], tasks=("t",))
    at_once = (tmp_path / "it.jsonl").read_text()
    record.record("it", [first], tasks=("t",))
    record.record("it", [second], tasks=("t",), add=True)
    assert (tmp_path / "it.jsonl").read_text() == at_once
    head, *rows = [json.loads(line) for line in at_once.splitlines()]
    assert sorted(head) == ["settings", "versions"]
    asr = {(row["arm"], row["seed"]): row["asr"] for row in rows}
    assert len(asr) == len(rows) == 6
    assert (asr["plain", 0], asr["plain", 1]) == (0.75, 1.0)
    found = record.load("it")
    assert (found["seeds"], found["commits"]) == ([0, 1], ["abc", "def"])
    record.record("it", [first], tasks=("t",))
    assert len((tmp_path / "it.jsonl").read_text().splitlines()) == 1 + 3


def test_a_study_without_attacks_is_recorded(tmp_path, place):
    rows = [
        {**row, "attack": None, "asr": None, "seed": seed, "task": "t"}
        for row in ROWS[:2]
        for seed in range(1 + (row["arm"] == "plain"))
    ]
    folder = study_of(tmp_path / "run", rows)
    (folder / "versions.json").write_text('{"jax": "1.3", "commit": "later"}')
    record.record("it", [folder], pictures=True)
    text = place.read_text()
    assert "| t | none | plain | 50.0" in text
    assert "1 to 2 seed(s)" in text
    assert not list(tmp_path.glob("*.png"))
    (folder / "versions.json").write_text('{"jax": "1.2"}')
    record.record("it", [folder], add=True)
    assert "jax 1.2, 1.3." in place.read_text()
    # One of the old records, which hold no rows to add to, but can be replaced.
    old = tmp_path / "it.json"
    old.write_text(json.dumps(record.load("it")))
    (tmp_path / "it.jsonl").unlink()
    with pytest.raises(ValueError, match=r"it\.jsonl"):
        record.record("it", [folder], add=True)
    assert record.names() == ["it"]
    assert pages.filled(pages.read(), "it", record.load("it")) == pages.read()
    record.record("it", [folder])
    assert record.names() == ["it"]
    assert not old.exists()


def test_a_table_stands_in_any_document_but_once(tmp_path, place):
    folder = study_of(tmp_path / "run", ROWS)
    elsewhere = tmp_path / "docs/results/it.md"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text(place.read_text())
    with pytest.raises(ValueError, match=r"in one document below .* found \["):
        record.record("it", [folder])
    place.write_text("# Results\n<!-- overview: it -->\n<!-- end -->\n")
    elsewhere.write_text(
        elsewhere.read_text().replace("after", "<!-- overview: it -->")
    )
    with pytest.raises(ValueError, match="followed by '<!-- end -->'"):
        record.record("it", [folder])
    elsewhere.write_text("<!-- results: it -->\n<!-- end -->\n")
    record.record("it", [folder])
    assert "| t | a | plain |" in elsewhere.read_text()
    assert "| task | attack | seeds |" in place.read_text()
    # Without a folder: the tables again, from the record.
    expected = pages.read()
    elsewhere.write_text("<!-- results: it -->\nold\n<!-- end -->\n")
    record.main(["it"])
    assert pages.read() == expected


def test_pieces_with_other_settings_are_refused(tmp_path, place):
    first = study_of(tmp_path / "first", ROWS, kd={"temperature": 2.0})
    second = study_of(tmp_path / "second", ROWS, kd={"temperature": 4.0})
    record.record("it", [first])
    before = place.read_text()
    for workdirs, add in (([first, second], False), ([second], True)):
        with pytest.raises(ValueError, match=r"kd.temperature was 2.0, now 4.0"):
            record.record("it", workdirs, add=add)
    assert place.read_text() == before


def test_lines_of_a_system_are_recorded(place, tmp_path):
    folders = []
    for seed, asr in enumerate((80.0, 90.0)):
        row = {"seed": seed, "attack": "replace", "arm": "plain", "ASR": asr}
        row |= dict.fromkeys(("ROUGE-1", "ROUGE-2", "ROUGE-L"), 50.0)
        row |= {"ROUGE-L triggered": 1.0, "bare": 0.0}
        folder = tmp_path / str(seed)
        folder.mkdir()
        settings = {"system": "written", "root": "/there", "rows": 10}
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "results.jsonl").write_text(json.dumps(row) + "\n")
        versions = [{"commit": f"c{seed}", "jax": "1"}]
        (folder / "versions.json").write_text(json.dumps(versions))
        folders.append(folder)
    (tmp_path / "grid.jsonl").write_text('{"settings": {}, "versions": {}}\n')
    record.record("it", folders)
    found = record.load("it")
    assert found["settings"] == [{"rows": 10}]
    assert [row["ASR"] for row in found["rows"]] == [80.0, 90.0]
    assert "| replace | plain | 2 | 50.0" in place.read_text()
    assert "| 85.0" in place.read_text()
    assert "Commit c0, c1, jax 1." in place.read_text()
    # In parts: the same record, also with a line that is measured again.
    whole = (tmp_path / "it.jsonl").read_text()
    record.record("it", folders[:1])
    record.record("it", folders[1:], add=True)
    assert (tmp_path / "it.jsonl").read_text() == whole
    row["ASR"] = 70.0
    (folders[1] / "results.jsonl").write_text(json.dumps(row) + "\n")
    record.record("it", folders[1:], add=True)
    assert [line["ASR"] for line in record.load("it")["rows"]] == [80.0, 70.0]
    assert len(record.load("it")["settings"]) == 1
    for given in ({"tasks": ("t",)}, {"pictures": True}):
        with pytest.raises(ValueError, match="not with a study"):
            record.record("it", folders, **given)
    with pytest.raises(ValueError, match="add a record of lines"):
        record.record("grid", folders[1:], add=True)
    other = json.dumps({"system": "written", "rows": 20})
    (folders[1] / "config.json").write_text(other)
    with pytest.raises(ValueError, match="rows was 10, now"):
        record.record("it", folders[1:], add=True)
    (folders[1] / "config.json").write_text(json.dumps({"system": "outputs"}))
    with pytest.raises(ValueError, match="workdir of written"):
        record.record("it", folders)
    (folders[1] / "config.json").write_text(json.dumps({"rows": 10}))
    with pytest.raises(ValueError, match="workdir of written"):
        record.record("it", folders)
