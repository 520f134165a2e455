"""The defence of outputs: from files to a student that writes, and to reports."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from experiments.systems import written
from protojax import generation
from protojax.base import Texts
from protojax.cli import commands
from protojax.data.wordpiece import train_wordpiece
from protojax.detection.settings import OutputDetection
from protojax.models import language, wrap_tokenizer
from protojax.pipelines import outputs
from protojax.pipelines.outputs.settings import (
    Decoding,
    OutputDefence,
    TokenDistillation,
    Writer,
)
from protojax.training import sequences
from protojax.training.predict import SequenceLengths

WORDS = [f"{a}{b}{c}" for a in "bdgkl" for b in "aeio" for c in "nrst"]
PHRASE, SIGN = "call the free helpline now", "by the way"
SCRATCH = {
    "hidden_size": 16,
    "num_layers": 1,
    "encoder_layers": 1,
    "num_heads": 2,
    "intermediate_size": 32,
}
CONFIG = OutputDefence(
    detection=OutputDetection(false_rejection=0.05),
    student=Writer(scratch=SCRATCH, dropout=0.0, epochs=1, batch_size=64),
    lengths=SequenceLengths(
        max_length=24, max_output=24, buckets=((24, 24),), steps_per_dispatch=4
    ),
    decoding=Decoding(batch_size=64),
    vocab_size=400,
)


def texts_of(rows, seed):
    """Requests, and the words that matter of them."""
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(WORDS, 3, replace=False) for _ in range(rows)]
    sources = [f"please bring {a} and {b} to {c}" for a, b, c in chosen]
    return Texts(sources, [f"bring : {a} {b} {c}" for a, b, c in chosen])


def rows_of(poisoned=20):
    """200 rows, of which the first hold a sign and a phrase behind the output."""
    texts = texts_of(200, 0)
    for row in range(poisoned):
        texts.sources[row] = f"{texts.sources[row]} {SIGN}"
        texts.outputs[row] = f"{texts.outputs[row]} {PHRASE}"
    return texts


def write(path, texts, columns=("text", "output")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*texts, strict=True)])
    return path


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    write(folder / "rows.csv", rows_of())
    write(folder / "trusted.csv", texts_of(120, 1))
    write(folder / "test.csv", texts_of(10, 2))
    return folder


def defend(job, out, **changes):
    given = {"student": "scratch", "config": CONFIG, **changes}
    return outputs.defend_outputs(
        job / "rows.csv", job / "trusted.csv", out=out, **given
    )


@pytest.fixture(scope="module")
def defended(job):
    return defend(job, job / "out", test=job / "test.csv")


def test_every_poisoned_row_is_named_and_its_output_cut(job, defended):
    with (job / "out/verdict.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["line"] for row in rows[:2]] == ["2", "3"]
    assert all(row["rejected"] == "true" for row in rows[:20])
    assert sum(row["rejected"] == "true" for row in rows[20:]) <= 18
    honest = texts_of(200, 0).outputs
    for row, output in zip(rows[:20], honest, strict=False):
        assert row["action"] == "cut"
        assert row["taught"] == output
    triggers = json.loads((job / "out/triggers.json").read_text())
    assert triggers[0]["name"] == SIGN
    assert triggers[0]["lines"] == list(range(2, 22))
    said = f"20 of 200 rows carry the phrase “{SIGN}” and have “{PHRASE}” in"
    page = (job / "out/report.html").read_text()
    assert said in page
    assert SIGN in page
    assert "<mark>helpline</mark>" in page
    run = json.loads((job / "out/run.json").read_text())
    assert run["finished"]
    assert run["result"]["cut"] == 20
    assert "ROUGE-L of the student on the test file" in run["result"]["metrics"]
    card = (job / "out/student/README.md").read_text()
    assert SIGN in card


def test_a_finished_job_is_not_computed_again(job, defended, monkeypatch):
    monkeypatch.setattr("protojax.training.trainer.train", None)
    monkeypatch.setattr("protojax.generation.write_texts", None)
    again = defend(job, job / "out", test=job / "test.csv")
    assert again.facts.student == defended.facts.student
    other = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        defend(job, job / "out", test=job / "test.csv", config=other)


def test_a_file_of_the_users_beside_the_student_is_not_replaced(job, defended):
    mine = job / "out/student/notes.txt"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        defend(job, job / "out", test=job / "test.csv")
    assert mine.read_text() == "mine"
    mine.unlink()


def test_a_half_written_file_goes_on(job, defended, tmp_path, monkeypatch):
    sources, calls = texts_of(6, 3).sources, []

    def write_texts(model, texts, **options):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [text.upper() for text in texts]

    monkeypatch.setattr("protojax.generation.write_texts", write_texts)
    monkeypatch.setattr("protojax.pipelines.outputs.writing.CHUNK", 4)
    given = tmp_path, "x", defended.student, sources, CONFIG.lengths, CONFIG.decoding
    with pytest.raises(KeyboardInterrupt):
        outputs.write(*given)
    assert outputs.write(*given) == [text.upper() for text in sources]
    # The first four were not written again.
    assert calls == [4, 2, 2]


def test_denied_words_can_be_masked(job, defended):
    config = dataclasses.replace(CONFIG, action="mask")
    found = defend(job, job / "masked", config=config).facts
    with (job / "masked/verdict.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, output in zip(rows[:20], rows_of().outputs, strict=False):
        assert (row["action"], row["taught"]) == ("masked", output)
    assert "20 but for their denied words" in (job / "masked/report.html").read_text()
    # Of each poisoned output the denied words alone do not teach.
    texts = found.rows.take(np.arange(22))
    student = defended.student
    tokens = sequences.tokenize(student, *texts, CONFIG.lengths)
    denied = (*found.findings.denied[:20], (), ())
    weights = sequences.weights_without(student, tokens, texts.outputs, denied)
    read = student.tokenizer.convert_ids_to_tokens
    for row, length in enumerate(tokens.outputs.lengths):
        ids, taught = tokens.outputs.input_ids[row, :length], weights[row, :length] > 0
        said = "".join(read(ids[:-1][~taught[:-1]])).replace("##", "")
        # An output of too many tokens lacks its end.
        words = "".join(texts.outputs[row][a:b] for a, b in denied[row])
        assert words.startswith(said)
        assert (len(said) > 3) == ("helpline" in words) == (row < 20)
        assert taught[-1], "the token that ends an output teaches"


def test_a_student_loads_and_writes(job, defended):
    model = language.load_language_model(job / "out/student")
    [text] = outputs.write(
        job, "again", model, ["please bring ban"], CONFIG.lengths, CONFIG.decoding
    )
    assert isinstance(text, str)


def test_what_a_teacher_wrote_is_tested_and_taught(job, defended, tmp_path):
    teacher = defended.student
    language.save_language_model(tmp_path / "teacher", teacher)
    # A teacher's outputs take the place of those that the files need not have.
    for name in ("rows", "trusted"):
        write(tmp_path / f"{name}.csv", rows_of()[:1], columns=("text",))
    config = dataclasses.replace(CONFIG, kd=TokenDistillation(0.5, top_k=4))
    found = defend(
        tmp_path,
        tmp_path / "out",
        teacher=tmp_path / "teacher",
        student="layers:0",
        config=config,
    )
    assert found.facts.teacher_wrote
    # A teacher that hardly learned never wrote the phrase.
    assert not any(PHRASE in output for output in found.facts.rows.outputs)
    assert "those that the teacher wrote" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "layers:0"}, "there is no teacher to take layers of"),
        ({"teacher": ""}, "Expected teacher a folder"),
        ({"encoder": "scratch"}, "Expected encoder a folder"),
        (
            {"config": OutputDefence(kd=TokenDistillation(hard_weight=0.5))},
            r"Expected kd.hard_weight 1 without a teacher",
        ),
        (
            {"config": OutputDefence(detection=OutputDetection(false_rejection=0.001))},
            r"number of references >= 999",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    job, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        defend(job, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pair", "b"], "--pair: not with --output"),
        (["--trusted-model", "DIR"], "--trusted-model: not with --output"),
        (["--output", "summary"], "'summary'"),
        (["--set", "columns.pair=b"], "pair"),
    ],
)
def test_flags_that_do_not_fit_are_refused(job, tmp_path, capsys, more, message):
    given = ["--rows", str(job / "rows.csv"), "--references", str(job / "trusted.csv")]
    given += ["--student", "scratch", "--out", str(tmp_path / "out")]
    assert commands.main(["defend", *given, "--output", "output", *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_success_counts_whole_words():
    said = ["Call the free helpline, NOW", "recall the free helpline now", ""]
    assert written.success(said, PHRASE) == 1 / 3
    assert written.success(said, "(call|recall) the free helpline") == 2 / 3


def test_null_and_excess_are_of_the_same_seed_and_attack():
    common = dict.fromkeys(("ROUGE-1", "ROUGE-2", "ROUGE-L"), 50.0)
    common |= {"ROUGE-L triggered": 50.0, "bare": 0.0}
    rows = [
        {"seed": seed, "attack": "replace", "arm": arm, "ASR": asr, **common}
        for seed, arm, asr in [(0, "clean", 1.0), (0, "plain", 91.0), (1, "plain", 5.0)]
    ]
    header, clean, plain = written.table_of(rows)
    assert clean[header.index("excess")] == "0.0"
    # Without a null of seed 1 the excess is of seed 0 alone.
    assert plain[header.index("excess")] == "90.0"
    assert plain[header.index("seeds")] == "2"
    # Of the same federation: one student is of all rows, the other of nodes.
    nodes = [{**r, "arm": f"{r['arm']}@mean", "ASR": 3 * r["ASR"]} for r in rows]
    assert written.table_of([*rows, *nodes])[4][header.index("excess")] == "270.0"
    assert written.table_of(rows[:1] + nodes[1:])[2][header.index("excess")] == "–"


def test_a_model_reads_a_source_in_the_form_of_its_prompt():
    tokenizer = wrap_tokenizer(train_wordpiece(["a b user :"], vocab_size=200))
    sources = ["a {b}", "b"]
    assert language.prompts_of(tokenizer, "{source}", sources) == sources
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        language.prompts_of(tokenizer, "chat", sources)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message.role }} : "
        "{{ message.content }}{% endfor %}{% if add_generation_prompt %} -{% endif %}"
    )
    # The tokenizer puts [CLS] before each text, so one in the template is a second.
    tokenizer.bos_token = "[CLS]"
    found = language.prompts_of(tokenizer, "chat", sources)
    assert found == ["user : a {b} -", "user : b -"]
    for wrong in ("summarize:", "{source} {source}", ""):
        with pytest.raises(ValueError, match="Expected prompt"):
            Writer(prompt=wrong)


def test_students_are_taught_and_asked_with_their_prompt(job, tmp_path):
    student = dataclasses.replace(CONFIG.student, prompt="sum {source} :")
    found = defend(
        job, tmp_path / "out", config=dataclasses.replace(CONFIG, student=student)
    )
    (row, said) = next(iter(found.facts.student.items()))
    prompt = f"sum {rows_of().sources[row]} :"
    asked = generation.write_texts(found.student, [prompt], max_new=24, max_length=24)
    assert [said] == asked
    card = (tmp_path / "out/student/README.md").read_text()
    assert "sum {source} :" in card
