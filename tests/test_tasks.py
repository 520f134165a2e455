import gzip
import importlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from experiments.world.tasks import METRICS, TASKS, load_files, load_task

ROWS = [{"sentence": f"text {row}", "label": row % 2} for row in range(10)]
COLUMNS = {"text": "sentence", "label": "label"}


def write(path, rows):
    """Writes rows in the format that the suffix of the path says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [rows[0], *(row.values() for row in rows)]
        text = "".join(separator.join(map(str, line)) + "\n" for line in lines)
        path.write_text(text)
    return str(path)


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good.jsonl", ROWS)


def broken(tmp_path, content, suffix="jsonl"):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def line(text, label):
    return json.dumps({"sentence": text, "label": label}) + "\n"


GOOD_LINES = "".join(line(**{"text": r["sentence"], "label": r["label"]}) for r in ROWS)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    train = write(tmp_path / f"train.{suffix}", ROWS)
    test = write(tmp_path / f"test.{suffix}", ROWS[:3])
    train, test, task = load_files(train, test, **COLUMNS)
    assert list(train.texts) == [row["sentence"] for row in ROWS]
    assert train.pairs is None
    assert train.labels.dtype == np.int32
    assert train.labels.tolist() == [row["label"] for row in ROWS]
    assert test.labels.tolist() == [0, 1, 0]
    assert task.label_names == ("0", "1")
    assert task.num_labels == 2
    assert task.metrics == ("accuracy",)


def test_pairs_and_scores(tmp_path):
    rows = [{"a": f"a {i}", "b": f"b {i}", "score": i / 2} for i in range(6)]
    path = write(tmp_path / "train.tsv", rows)
    train, _, task = load_files(
        path,
        path,
        text="a",
        pair="b",
        label="score",
        problem="regression",
        metric="spearman",
    )
    assert train.pairs == [f"b {i}" for i in range(6)]
    assert train.labels.dtype == np.float32
    assert train.labels.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert task.num_labels == 1
    assert task.label_names == ()


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (["pos", "neg", " pos"], ("neg", "pos"), [1, 0, 1]),
        ([3, 1, 10], ("1", "3", "10"), [1, 0, 2]),
        ([1.0, 0.0, "1"], ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("0", "1"), [1, 0, 1]),
        ([-1, 1, 1], ("-1", "1"), [0, 1, 1]),
        (["1.0", "0.0", 1], ("0", "1"), [1, 0, 1]),
        (["-1.00", "10.0", "2"], ("-1", "2", "10"), [0, 2, 1]),
        (["v1.0", "1.0", "v1.0"], ("1", "v1.0"), [1, 0, 1]),
    ],
)
def test_label_names_as_found(tmp_path, labels, names, classes):
    rows = [{"sentence": "text", "label": label} for label in labels]
    path = write(tmp_path / "train.jsonl", rows)
    train, _, task = load_files(path, path, **COLUMNS)
    assert task.label_names == names
    assert train.labels.tolist() == classes


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_whole_numbers_with_a_point_are_classes_in_every_format(tmp_path, suffix):
    rows = [{**row, "label": float(row["label"])} for row in ROWS]
    path = write(tmp_path / f"train.{suffix}", rows)
    train, _, task = load_files(path, path, **COLUMNS)
    assert task.label_names == ("0", "1")
    assert train.labels.tolist() == [row["label"] for row in ROWS]
    rows[3]["label"] = 0.5
    path = write(tmp_path / f"train.{suffix}", rows)
    with pytest.raises(ValueError, match=r"fractions such as '0\.5'. Scores need"):
        load_files(path, path, **COLUMNS)


def test_fractions_beside_a_nan_are_no_classes(tmp_path):
    path = broken(tmp_path, "sentence,label\na,0.5\nb,1.5\nc,nan\n", "csv")
    with pytest.raises(ValueError, match="Scores need problem='regression'"):
        load_files(path, path, **COLUMNS)


def test_the_classes_and_their_rows_are_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "protojax")
    rows = [{"sentence": "x", "label": label} for label in ("pos", "neg", "pos")]
    train = write(tmp_path / "train.csv", rows)
    test = write(tmp_path / "test.csv", rows[:1])
    load_files(train, test, **COLUMNS)
    assert "train.csv: 3 rows of 2 classes: neg (1), pos (2)." in caplog.text
    assert "test.csv: 1 rows of 1 classes: neg (0), pos (1)." in caplog.text
    write(tmp_path / "sst2/train.jsonl", ROWS)
    load_task("sst2", root=str(tmp_path))
    assert "10 rows of 2 classes: negative (5), positive (5)." in caplog.text
    load_files(
        write(tmp_path / "scores.jsonl", ROWS),
        train.replace("train", "scores").replace("csv", "jsonl"),
        problem="regression",
        metric="pearson",
        **COLUMNS,
    )
    assert "scores.jsonl: 10 scores in [0, 1]." in caplog.text
    assert not [record for record in caplog.records if "taken for" in record.message]


def test_a_thousand_classes_are_not_all_shown(tmp_path, caplog):
    caplog.set_level(logging.INFO, "protojax")
    rows = [{"sentence": "x", "label": f"text {row}"} for row in range(1000)]
    path = write(tmp_path / "train.jsonl", rows)
    load_files(path, path, **COLUMNS)
    assert "text 188 (1) and 900 more." in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["pos", "neg", "Pos"], "'Pos', 'pos' are taken for 2 classes"),
        (["a b", "ab", "c"], "'a b', 'ab' are taken for 2 classes"),
        (["pos", "neg", "nan"], "label 'nan' is taken for a class"),
        (["pos", "neg", "NULL"], "label 'NULL' is taken for a class"),
        ([0, 1, "N/A"], "label 'N/A' is taken for a class"),
        (["label", "other", "other"], "'label' is taken for a class, it is the column"),
    ],
)
def test_doubtful_labels_are_warned_of(tmp_path, caplog, labels, message):
    rows = [{"sentence": "text", "label": label} for label in labels]
    path = write(tmp_path / "train.jsonl", rows)
    load_files(path, path, **COLUMNS)
    assert message in caplog.text


def test_declared_labels_as_numbers_or_names(tmp_path):
    rows = [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}]
    write(tmp_path / "sst2/train.jsonl", rows)
    names = [{"sentence": "c", "label": "positive"}, {"sentence": "d", "label": "0"}]
    write(tmp_path / "sst2/validation.jsonl", names)
    train, test, task = load_task("sst2", root=str(tmp_path))
    assert train.labels.tolist() == test.labels.tolist() == [1, 0]
    assert task.label_names == ("negative", "positive")


def test_csv_fields_may_be_quoted_and_tsv_fields_not(tmp_path):
    content = 'sentence,label\n"a, ""b""\nc",0\n\nd,1\n'
    path = broken(tmp_path, content, "csv")
    assert load_files(path, path, **COLUMNS)[0].texts == ['a, "b"\nc', "d"]
    content = 'sentence\tlabel\r\n"open\t0\r\nshut" , \u2028x\t1\r\n'
    path = broken(tmp_path, content, "tsv")
    assert load_files(path, path, **COLUMNS)[0].texts == ['"open', 'shut" , \u2028x']


def test_numbers_are_texts(tmp_path):
    rows = [{"sentence": 10, "label": 0}, {"sentence": 2.5, "label": 1}]
    path = write(tmp_path / "train.jsonl", rows)
    assert load_files(path, path, **COLUMNS)[0].texts == ["10", "2.5"]


@pytest.mark.parametrize(("rows", "held_out"), [(20, 4), (23, 5), (10_400, 2000)])
def test_missing_test_file_is_held_out(tmp_path, caplog, rows, held_out):
    rows = [{"sentence": f"text {i}", "label": int(i % 4 == 0)} for i in range(rows)]
    write(tmp_path / "sst2/train.jsonl", rows)
    train, test, _ = load_task("sst2", root=str(tmp_path))
    assert len(test.texts) == held_out
    assert sorted([*train.texts, *test.texts]) == sorted(r["sentence"] for r in rows)
    assert abs(np.mean(test.labels) - 0.25) < 0.1
    assert f"{held_out} of {len(rows)} rows held out" in caplog.text
    again = load_task("sst2", root=str(tmp_path))
    assert list(again[1].texts) == list(test.texts)


def test_the_only_row_of_a_class_is_learned_from(tmp_path, caplog):
    rows = [*ROWS, {"sentence": "rare", "label": 7}, {"sentence": "odd", "label": 9}]
    train, test, task = load_files(write(tmp_path / "train.jsonl", rows), **COLUMNS)
    assert task.label_names == ("0", "1", "7", "9")
    assert {"rare", "odd"} < set(train.texts)
    assert sorted(test.labels) == [0, 1]
    assert "2 of 12 rows held out" in caplog.text


def test_held_out_rows_hold_every_class(tmp_path):
    rows = [{"sentence": f"text {row}", "label": row % 8} for row in range(16)]
    train = write(tmp_path / "train.jsonl", rows)
    _, test, _ = load_files(train, **COLUMNS)
    assert sorted(test.labels) == list(range(8))


@pytest.mark.parametrize("stem", ["validation_matched", "validation", "test"])
def test_test_file_by_any_of_its_names(tmp_path, stem):
    rows = [{"premise": f"p {i}", "hypothesis": "h", "label": i % 3} for i in range(6)]
    write(tmp_path / "mnli/train.jsonl", rows)
    write(tmp_path / f"mnli/{stem}.csv", rows[:2])
    _, test, _ = load_task("mnli", root=str(tmp_path))
    assert test.texts == ["p 0", "p 1"]


def test_own_test_split_goes_first(tmp_path):
    for stem, rows in [("train", ROWS), ("validation", ROWS[:4]), ("test", ROWS[:2])]:
        rows = [{"text": row["sentence"], "label": row["label"]} for row in rows]
        write(tmp_path / f"ag_news/{stem}.jsonl", rows)
    assert len(load_task("ag_news", root=str(tmp_path))[1].texts) == 2


def test_snips_is_bundled():
    train, test, task = load_task("snips")
    assert (len(train.texts), len(test.texts)) == (13516, 695)
    assert task.label_names == (
        "AddToPlaylist",
        "BookRestaurant",
        "GetWeather",
        "PlayMusic",
        "RateBook",
        "SearchCreativeWork",
        "SearchScreeningEvent",
    )
    assert train.texts[0] == "Add another song to the Cita Romántica playlist."
    assert train.labels[0] == 0
    assert sum(text.count('"') for text in train.texts) > 0


def test_every_task_is_well_formed():
    assert set(TASKS) == {
        *("cola", "sst2", "sst2_sentence", "mrpc", "stsb", "qqp", "mnli", "qnli"),
        *("rte", "wnli", "ag_news", "snips", "banking77"),
    }
    for name, task in TASKS.items():
        assert task.name == name
        assert task.problem in ("classification", "regression")
        assert set(task.metrics) <= set(METRICS)
        assert len(set(task.label_names)) == len(task.label_names)
    assert TASKS["sst2"].hub == ("nyu-mll/glue", "sst2")


@pytest.fixture
def datasets():
    """Imported by its tests alone, since every worker imports every file of tests."""
    return importlib.import_module("datasets")


def test_hub_rows(monkeypatch, datasets):
    splits = {
        "train": datasets.Dataset.from_list(ROWS),
        "validation": datasets.Dataset.from_list(ROWS[:3]),
    }
    calls = []

    def load_dataset(*args):
        calls.append(args)
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train, test, task = load_task("sst2")
    assert calls == [("nyu-mll/glue", "sst2")]
    assert (len(train.texts), len(test.texts)) == (10, 3)
    assert task.name == "sst2"


def test_a_task_that_is_not_on_the_hub_asks_for_a_folder():
    with pytest.raises(FileNotFoundError, match=r"not on the hub, set data.root"):
        load_task("sst2_sentence")


def test_hub_that_cannot_be_reached(monkeypatch, datasets):
    def load_dataset(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = r"no route Set data.root to .* rte/train"
    with pytest.raises(ConnectionError, match=message):
        load_task("rte")


def test_unknown_task():
    with pytest.raises(ValueError, match="Did you mean 'sst2'"):
        load_task("sst")


# What is wrong in a training file, its suffix, and what the error must say.
BAD_FILES = {
    "empty file": ("", "jsonl", "Expected rows in .*broken.jsonl, found none"),
    "empty table": ("", "tsv", "Expected rows in .*broken.tsv, found none"),
    "header only": ("sentence,label\n", "csv", "Expected rows in .*broken.csv"),
    "blank rows only": (line(" ", 0), "jsonl", "found none with a text"),
    "not JSON": (GOOD_LINES + "{oops\n", "jsonl", "broken.jsonl, line 11: not JSON"),
    "huge number": ('{"a": ' + "1" * 5000 + "}", "jsonl", "line 1: not JSON"),
    "deep nesting": ("[" * 200_000, "jsonl", "line 1: not JSON"),
    "not an object": ("[1, 2]\n", "jsonl", "line 1: expected an object"),
    "missing column": (
        "sentense\tlabel\na\t0\n",
        "tsv",
        "row 2: expected column 'sentence', found sentense, label. "
        "Did you mean 'sentense'",
    ),
    "missing key": (
        GOOD_LINES + '{"sentence": "x"}\n',
        "jsonl",
        "row 11: expected column 'label', found sentence",
    ),
    "too many fields": (
        "sentence\tlabel\na\t0\n\nb\tc\t1\n",
        "tsv",
        r"line 4: expected 2 fields \(sentence, label\), found 3",
    ),
    "too few fields": ("sentence,label\na\n", "csv", "line 2: .* 2 fields .* found 1"),
    "open quote": ('sentence,label\n"a,0\nb,1\n', "csv", "line 3: unexpected end of"),
    "no label": (GOOD_LINES + line("x", None), "jsonl", "row 11: unknown label None"),
    "empty label": ("sentence,label\na,0\nb,1\nc,\n", "csv", "row 4: unknown label ''"),
    "NaN label": (
        GOOD_LINES + line("x", float("nan")),
        "jsonl",
        "row 11: .* label nan",
    ),
    "text of another type": (
        line(["a"], 0),
        "jsonl",
        "row 1: 'sentence' is no text but",
    ),
    "column twice": (
        "sentence,label,id,label\na,0,7,1\n",
        "csv",
        r"line 1: expected each column once, found 'label' at positions 2 and 4",
    ),
    "column twice, tabs": (
        "\nsentence\tsentence\tlabel\na\tb\t0\n",
        "tsv",
        r"line 2: expected each column once, found 'sentence' at positions 1 and 2",
    ),
    "key twice": (
        GOOD_LINES + '{"sentence": "x", "label": 0, "label": 1}\n',
        "jsonl",
        "line 11: expected each column once, found 'label' at positions 2 and 3",
    ),
    "header again": (
        "sentence,label\na,0\nb,1\nsentence, label\nc,1\n",
        "csv",
        "row 4: expected a row, found the header again",
    ),
    "several labels": (
        GOOD_LINES + line("x", ["0", "1"]),
        "jsonl",
        "row 11: 'label' is no class but list, expected one name or number",
    ),
    "a record for a label": (
        GOOD_LINES + line("x", {"0": 1}),
        "jsonl",
        "row 11: 'label' is no class but dict",
    ),
    "UTF-16": (
        "sentence,label\na,0\nb,1\n".encode("utf-16"),
        "csv",
        "found UTF-16: set data.files.encoding='utf-16'",
    ),
    "UTF-16 without a mark": (
        "sentence\tlabel\na\t0\nb\t1\n".encode("utf-16-le"),
        "tsv",
        "found UTF-16-LE: set data.files.encoding='utf-16-le'",
    ),
    "Latin-1": (
        b"sentence,label\n"
        + "".join(f"café {row},{row % 2}\n" for row in range(20)).encode("latin-1"),
        "csv",
        "other bytes in 20 of 21 lines. Name the encoding in data.files.encoding",
    ),
    "not gzip": ("sentence,label\na,0\n", "csv.gz", "not a whole gzip file"),
    "half a gzip": (
        gzip.compress(GOOD_LINES.encode())[:40],
        "jsonl.gz",
        "not a whole gzip file",
    ),
    "compressed Parquet": ("PAR?", "parquet.gz", "in .gz behind one of those of text"),
    "not parquet": ("PAR?", "parquet", "broken.parquet: not a parquet file"),
    "unknown suffix": ("a", "xlsx", "end in one of jsonl, csv, tsv, parquet"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("role", ["train", "test"])
def test_bad_files(tmp_path, good, case, role):
    content, suffix, message = BAD_FILES[case]
    paths = {"train": good, "test": good} | {role: broken(tmp_path, content, suffix)}
    with pytest.raises(ValueError, match=message) as error:
        load_files(**paths, **COLUMNS)
    assert "broken" in str(error.value)


@pytest.mark.parametrize("problem", ["classification", "regression"])
def test_one_label_only(tmp_path, good, problem):
    path = broken(tmp_path, line("a", 1) + line("b", 1.0))
    metric = {"classification": "accuracy", "regression": "pearson"}[problem]
    with pytest.raises(
        ValueError, match=r"two labels in .*broken.jsonl, .* only {'1'}"
    ):
        load_files(path, good, problem=problem, metric=metric, **COLUMNS)
    load_files(good, path, problem=problem, metric=metric, **COLUMNS)


def test_fractions_are_no_classes(tmp_path, good):
    path = broken(tmp_path, line("a", 0.5) + line("b", 1.5))
    with pytest.raises(ValueError, match="Scores need problem='regression'"):
        load_files(path, good, **COLUMNS)


@pytest.mark.parametrize("score", [None, float("nan"), "high", "", 1e300, [1.0]])
def test_bad_scores(tmp_path, score):
    path = broken(tmp_path, line("a", 0.0) + line("b", 5) + line("c", score))
    with pytest.raises(
        ValueError, match=r"broken.jsonl, row 3: expected a finite score"
    ):
        load_files(path, path, problem="regression", metric="pearson", **COLUMNS)


@pytest.mark.parametrize("label", [7, -2, "neutral", 0.5])
def test_label_outside_of_the_task(tmp_path, label):
    write(tmp_path / "sst2/train.jsonl", [*ROWS, {"sentence": "x", "label": label}])
    message = f"row 11: unknown label {label!r}, known are 0, 1, negative, positive.$"
    with pytest.raises(ValueError, match=message):
        load_task("sst2", root=str(tmp_path))


def test_hidden_labels_have_their_own_sentence(tmp_path):
    write(tmp_path / "sst2/train.jsonl", ROWS)
    write(tmp_path / "sst2/test.jsonl", [{"sentence": "x", "label": -1}])
    with pytest.raises(ValueError, match=r"test.jsonl, row 1: .*hidden labels of GLUE"):
        load_task("sst2", root=str(tmp_path))


def test_test_label_that_training_lacks(tmp_path):
    rows = [{"sentence": "x", "label": label} for label in ("cat", "dog")]
    train = write(tmp_path / "train.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [{"sentence": "x", "label": "cow"}])
    with pytest.raises(ValueError, match="unknown label 'cow', known are cat, dog"):
        load_files(train, test, **COLUMNS)


def test_missing_files(tmp_path, good):
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl, found none"):
        load_files(str(tmp_path / "nowhere.jsonl"), good, **COLUMNS)
    with pytest.raises(FileNotFoundError, match="found none"):
        load_files(good, str(tmp_path), **COLUMNS)
    with pytest.raises(
        FileNotFoundError, match=r"cola/train.\{jsonl,csv,tsv,parquet,ndjson\}"
    ):
        load_task("cola", root=str(tmp_path))


def test_two_files_of_one_stem(tmp_path):
    write(tmp_path / "sst2/train.jsonl", ROWS)
    write(tmp_path / "sst2/train.csv", ROWS)
    with pytest.raises(ValueError, match=r"found train.jsonl, train.csv"):
        load_task("sst2", root=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem": "ranking"}, "problem one of classification, regression"),
        ({"metric": "pearson"}, "metric one of accuracy, f1, matthews"),
        ({"problem": "regression"}, "metric one of pearson, spearman"),
        ({"train": ""}, "Expected data.files.train a file, found data.files.train=''"),
    ],
)
def test_load_files_rejects_settings(good, settings, message):
    with pytest.raises(ValueError, match=message):
        load_files(**{"train": good, "test": good, **COLUMNS, **settings})


def test_f1_is_for_two_classes(tmp_path):
    rows = [{"sentence": f"text {row}", "label": row % 3} for row in range(9)]
    path = write(tmp_path / "train.jsonl", rows)
    with pytest.raises(ValueError, match="num_labels <= 2 for metric='f1'"):
        load_files(path, path, metric="f1", **COLUMNS)


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path, caplog):
    content = b"\xef\xbb\xbfsentence\tlabel\nna\xefve\t0\ncaf\xe9\t1\nr\xc3\xa9al\t0\n"
    path = broken(tmp_path, content, "tsv")
    train, _, _ = load_files(path, path, **COLUMNS)
    assert train.texts == ["na\ufffdve", "caf\ufffd", "réal"]
    assert "broken.tsv: replaced bytes in 2 lines not UTF-8" in caplog.text


@pytest.mark.parametrize(("lines", "fine"), [(900, False), (1100, True)])
def test_a_file_of_which_over_a_hundredth_is_not_utf8_is_refused(
    tmp_path, caplog, lines, fine
):
    # Eleven lines and the header.
    rows = [f"a {row}\t{row % 2}\n".encode() for row in range(lines - 12)]
    rows += [b"caf\xe9 %d\t%d\n" % (row, row % 2) for row in range(11)]
    path = broken(tmp_path, b"sentence\tlabel\n" + b"".join(rows), "tsv")
    if fine:
        assert len(load_files(path, path, **COLUMNS)[0].texts) == lines - 1
        assert "replaced bytes in 11 lines" in caplog.text
    else:
        with pytest.raises(ValueError, match="other bytes in 11 of 900 lines"):
            load_files(path, path, **COLUMNS)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "csv.gz"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-be"])
def test_an_encoding_that_is_named(tmp_path, caplog, suffix, encoding):
    separator = "," if "csv" in suffix else "\t"
    if suffix == "jsonl":
        content = "".join(
            json.dumps(
                {"sentence": f"café {row}", "label": row % 2}, ensure_ascii=False
            )
            + "\n"
            for row in range(20)
        )
    else:
        rows = [f"café {row}{separator}{row % 2}\r\n" for row in range(20)]
        content = f"sentence{separator}label\r\n" + "".join(rows)
    content = content.encode(encoding)
    content = gzip.compress(content) if suffix.endswith("gz") else content
    path = broken(tmp_path, content, suffix)
    train, _, _ = load_files(path, path, encoding=encoding, **COLUMNS)
    assert train.texts == [f"café {row}" for row in range(20)]
    assert "replaced" not in caplog.text
    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / f"train.{suffix}").write_bytes(content)
    train, test, _ = load_task("sst2", root=str(tmp_path), encoding=encoding)
    assert len(train.texts) + len(test.texts) == 20


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-one", "data.files.encoding such as .* found data.files.encoding='lat"),
        ("base64", "data.files.encoding such as"),
        ("ascii", "broken.tsv: not ascii, which data.files.encoding says"),
        ("utf-16", "broken.tsv: not utf-16, which data.files.encoding says"),
    ],
)
def test_a_wrong_encoding_is_named(tmp_path, encoding, message):
    path = broken(tmp_path, "sentence\tlabel\né\t0\nb\t1\n", "tsv")
    with pytest.raises(ValueError, match=message):
        load_files(path, path, encoding=encoding, **COLUMNS)


@pytest.mark.parametrize("name", ["ROWS.CSV", "rows.Jsonl", "rows.ndjson", "rows.TSV"])
@pytest.mark.parametrize("compressed", [False, True])
def test_names_of_the_formats(tmp_path, name, compressed):
    suffix = Path(name).suffix.lower().replace("ndjson", "jsonl")
    content = Path(write(tmp_path / f"plain{suffix}", ROWS)).read_bytes()
    path = tmp_path / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(content) if compressed else content)
    train, _, _ = load_files(str(path), str(path), **COLUMNS)
    assert train.texts == [row["sentence"] for row in ROWS]
    (tmp_path / "sst2").mkdir()
    path.rename(tmp_path / "sst2" / f"train{''.join(path.suffixes)}")
    # Another stem, and no format.
    write(tmp_path / "sst2/train.old.csv", ROWS[:1])
    (tmp_path / "sst2/train.txt").write_text("")
    train, test, _ = load_task("sst2", root=str(tmp_path))
    assert len(train.texts) + len(test.texts) == 10


def test_columns_without_a_name_are_nobodys(tmp_path):
    path = broken(tmp_path, "sentence,label,,\na,0,,\nb,1,,\n", "csv")
    assert load_files(path, path, **COLUMNS)[0].texts == ["a", "b"]


def test_parquet_with_a_column_twice(tmp_path):
    columns = [pyarrow.array(["a", "b"]), pyarrow.array([0, 1]), pyarrow.array([1, 0])]
    table = pyarrow.Table.from_arrays(columns, names=["sentence", "label", "label"])
    pyarrow.parquet.write_table(table, path := tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="'label' at positions 2 and 3"):
        load_files(str(path), str(path), **COLUMNS)


def test_half_surrogates_are_replaced_and_counted(tmp_path, caplog):
    path = broken(tmp_path, line("a \ud83d", 0) + line("\U0001f600", 1))
    assert "\\ud83d\\ude00" in Path(path).read_text()
    train, _, _ = load_files(path, path, **COLUMNS)
    assert train.texts == ["a ?", "\U0001f600"]
    assert "1 rows: broken characters replaced" in caplog.text


@pytest.mark.parametrize("blank", ["", "  \t ", None])
def test_rows_without_text_are_dropped_and_counted(tmp_path, caplog, blank):
    path = broken(tmp_path, GOOD_LINES + line(blank, 0) + line("x", 1) + line(blank, 1))
    train, _, _ = load_files(path, path, **COLUMNS)
    assert len(train.texts) == len(train.labels) == 11
    assert train.texts[-1] == "x"
    assert "broken.jsonl: 2 rows: dropped, no text" in caplog.text


def test_pairs_without_their_second_text_are_dropped(tmp_path):
    rows = [
        {"a": "a", "b": b, "label": i % 2} for i, b in enumerate(["x", "", "z", "w"])
    ]
    path = write(tmp_path / "train.jsonl", rows)
    train, _, _ = load_files(path, path, text="a", pair="b", label="label")
    assert train.pairs == ["x", "z", "w"]


def test_missing_values_of_parquet(tmp_path):
    path = write(tmp_path / "train.parquet", [*ROWS, {"sentence": None, "label": 0}])
    assert len(load_files(path, path, **COLUMNS)[0].texts) == 10


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_a_megabyte_on_one_line_is_kept(tmp_path, suffix):
    rows = [{"sentence": "word " * 200_000 + "end", "label": 0}, ROWS[1]]
    path = write(tmp_path / f"train.{suffix}", rows)
    train, _, _ = load_files(path, path, **COLUMNS)
    assert len(train.texts[0]) == 1_000_003


def test_good_files_log_nothing(good, caplog):
    with caplog.at_level(logging.WARNING, "protojax"):
        load_files(good, good, **COLUMNS)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "labels", "predictions", "value"),
    [
        ("accuracy", [0, 1, 1, 0], [0, 1, 0, 0], 0.75),
        ("f1", [0, 1, 1, 0], [0, 1, 0, 0], 2 / 3),
        # TP 1, TN 2, FN 1: (1 * 2 - 0 * 1) / sqrt(1 * 2 * 2 * 3)
        ("matthews", [0, 1, 1, 0], [0, 1, 0, 0], 2 / 12**0.5),
        ("pearson", [0.0, 1.0, 2.0], [0.0, 1.0, 5.0], 5 / 28**0.5),
        ("spearman", [0.0, 1.0, 2.0], [0.0, 1.0, 9.0], 1.0),
    ],
)
def test_metrics_by_hand(name, labels, predictions, value):
    found = METRICS[name](np.array(labels), np.array(predictions))
    assert isinstance(found, float)
    assert found == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", ["f1", "matthews", "pearson", "spearman"])
@pytest.mark.parametrize("rows", [1, 4])
def test_constant_predictions_are_worth_nothing(name, rows):
    labels = np.arange(rows) % 2
    assert METRICS[name](labels, np.zeros(rows, int)) == 0.0
    assert METRICS[name](np.zeros(rows, int), np.zeros(rows, int)) == 0.0


def test_nearly_constant_scores_warn_of_nothing():
    scores = np.array([1.0, 1.0 + 1e-15, 1.0])
    assert -1 <= METRICS["pearson"](np.array([0.0, 1.0, 2.0]), scores) <= 1


# Label column, number of classes, whether there are pairs, headline metric.
DATA_FOLDER = {
    "cola": ("label", 2, False, "matthews"),
    "sst2": ("label", 2, False, "accuracy"),
    "sst2_sentence": ("label", 2, False, "accuracy"),
    "ag_news": ("label", 4, False, "accuracy"),
    "mrpc": ("label", 2, True, "f1"),
    "qqp": ("label", 2, True, "f1"),
    "stsb": ("label", 1, True, "pearson"),
    "qnli": ("label", 2, True, "accuracy"),
    "rte": ("label", 2, True, "accuracy"),
    "wnli": ("label", 2, True, "accuracy"),
    "snips": ("label", 7, False, "accuracy"),
    "banking77": ("label_text", 77, False, "accuracy"),
}


@pytest.mark.extra
@pytest.mark.parametrize("name", DATA_FOLDER)
def test_real_data(name):
    root = os.environ.get("PROTOJAX_DATA")
    if not root:
        pytest.skip("PROTOJAX_DATA names no folder of data sets")
    if not (Path(root) / name).is_dir():
        pytest.skip(f"no {name} in {root}")
    label, num_labels, pairs, metric = DATA_FOLDER[name]
    train, test, task = load_task(name, root=root)
    assert (task.label, task.num_labels, task.metrics[0]) == (label, num_labels, metric)
    for examples in (train, test):
        assert len(examples.texts) == len(examples.labels) > 50
        assert (examples.pairs is not None) == pairs
        assert all(text.strip() for text in examples.texts)
        if task.problem == "regression":
            assert examples.labels.dtype == np.float32
            assert (examples.labels.min(), examples.labels.max()) == (0, 5)
        else:
            assert examples.labels.dtype == np.int32
            assert set(examples.labels) == set(range(num_labels))
    assert METRICS[metric](test.labels, test.labels) == pytest.approx(1)
