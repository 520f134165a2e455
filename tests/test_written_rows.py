"""Texts that a language model writes: as transfer rows, and as references."""

import dataclasses
import functools

import numpy as np
import pytest

from experiments.systems import private as private_study
from experiments.systems.privacy_settings import Private
from protojax.base import Examples
from protojax.data.readers import Source
from protojax.generation import write_alike
from protojax.models.language import save_language_model
from protojax.pipelines import Watch, _generated
from protojax.pipelines.privacy import RECIPES, Privatise, Rows
from protojax.pipelines.privacy.inputs import prepare
from protojax.pipelines.settings import Columns, Defence, PublicWriter
from protojax.privacy.overlap import clean_rows
from protojax.training.predict import Lengths
from tests import tiny_job
from tests.tiny_job import NAMES

SHOWN = [row.text for row in tiny_job.clean_rows(12, seed=2)]
OPTIONS = {"max_new": 6, "batch_size": 16}


@functools.cache
def decoder():
    return tiny_job.decoder(SHOWN)


def written(number=14, seed=0, **options):
    return write_alike(decoder(), SHOWN, number, seed=seed, **OPTIONS, **options)


def test_texts_are_new_different_and_of_the_seed():
    found = written(shown=2)
    assert len(set(found)) == len(found) == 14
    assert not {*found} & {*SHOWN, ""}
    assert not [text for text in found if "\n" in text]
    assert found == written(shown=2)
    assert found != written(shown=2, seed=1)


def test_what_was_shown_is_not_written():
    # From nothing, and nearly without chance: always the same.
    options = {"shown": 0, "temperature": 1e-6, **OPTIONS}
    [said] = write_alike(decoder(), [], 1, **options)
    with pytest.raises(ValueError, match="number at most 1, the different texts"):
        write_alike(decoder(), SHOWN, 2, **options)
    with pytest.raises(ValueError, match="number at most 0"):
        write_alike(decoder(), [said], 1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "number"),
        ({"temperature": 0.0}, "temperature"),
        ({"shown": 13}, r"shown in \[0, 12\]"),
    ],
)
def test_texts_that_cannot_be_written(options, message):
    with pytest.raises(ValueError, match=message):
        written(**options)


def test_rows_are_refused_or_left_out_by_the_scan():
    texts = ["Play some jazz!", "stop it", "play a waltz"]
    kept = clean_rows(texts, ["play some jazz"], action="drop", name="written")
    assert kept.tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"exact: 1.* Or --overlap drop"):
        clean_rows(texts, ["play some jazz"], action="error", name="written")
    with pytest.raises(ValueError, match="number of written rows some that hold"):
        clean_rows(texts[:1], ["play some jazz"], action="drop", name="written")
    with pytest.raises(ValueError, match="Did you mean 'drop'"):
        clean_rows(texts, [], action="drops", name="written")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    save_language_model(folder / "decoder", decoder())
    return folder


WRITER = PublicWriter(texts=14, shown=2, **OPTIONS)


def prepared(folder, private, **changes):
    """What `privatise` starts from, with a language model that writes."""
    public = [
        row._replace(text=text) for row, text in zip(private, SHOWN, strict=False)
    ]
    paths = {
        "private": tiny_job.write(folder / "private.csv", private),
        "public": tiny_job.write(folder / "public.csv", public, columns=("text",)),
    }
    writer = dataclasses.replace(WRITER, model=str(folder / "decoder"))
    config = Privatise(writer=writer, pipelines=0, **changes)
    return prepare(config, **paths, teacher="scratch", student="scratch", test=None)


def test_a_student_learns_on_what_was_written(folder):
    private = tiny_job.clean_rows(40, seed=1)
    job = prepared(folder, private)
    assert job.rows.written.texts == written(shown=2)
    assert job.config.chosen.transfer == "written"
    assert job.config.chosen.answers == "hard"
    # After the private and the public rows; there are no test rows.
    places = job.rows.transfer("written")
    np.testing.assert_array_equal(places, 40 + 12 + np.arange(14))
    assert [job.rows.all.texts[place] for place in places] == job.rows.written.texts
    assert job.identity["writer.files"] is not None
    members = prepared(folder, private, recipe="student_on_members")
    assert members.rows.written is None


def test_a_private_text_that_was_written_is_an_error(folder):
    known = tiny_job.Row(written(shown=2)[3].upper(), NAMES[0])
    private = [*tiny_job.clean_rows(39, seed=1), known]
    with pytest.raises(ValueError, match="exact: 1") as found:
        prepared(folder, private)
    assert known.text.lower() not in str(found.value).lower()
    job = prepared(folder, private, overlap="drop")
    assert (job.dropped, len(job.rows.written.texts)) == (1, 13)


def test_a_study_has_written_rows_too(folder):
    private, public = (
        Examples([row.text for row in rows], None, np.zeros(len(rows), np.int32))
        for rows in (tiny_job.clean_rows(40, seed=1), tiny_job.clean_rows(12, seed=2))
    )
    writer = dataclasses.replace(WRITER, model=str(folder / "decoder"))
    rows = Rows(private, public, private, 2)
    given = Private(writer=writer), rows, 0, folder, Watch()
    found, failed = private_study._written(*given)
    assert found.texts == written(shown=2)
    assert failed == 0
    # What holds something of a private row is left out and counted.
    known = private._replace(texts=[found.texts[0], *private.texts[1:]])
    given = given[0], rows._replace(private=known), *given[2:]
    again, failed = private_study._written(*given)
    assert (again.texts, failed) == (found.texts[1:], 1)
    # Arms that need a language model are run where they are asked for.
    assert "student_early_hard_written" in RECIPES
    assert "student_early_hard_written" not in Private().arms


def test_settings_of_what_is_written_are_checked():
    with pytest.raises(
        ValueError, match=r"writer\.model a language model for student_e"
    ):
        Privatise(recipe="student_early_hard_written")
    with pytest.raises(ValueError, match=r"columns\.pair"):
        Privatise(writer=PublicWriter(model="x"), columns=Columns(pair="second"))
    with pytest.raises(ValueError, match="max_new"):
        PublicWriter(max_new=0)


def test_references_are_written_and_labelled_by_the_teacher(folder):
    # A teacher that knows the texts, and says both classes.
    known = [
        tiny_job.Row(text, NAMES[n % 2]) for n, text in enumerate(written(shown=2))
    ]
    teacher = tiny_job.save_teacher(folder, 8 * known)
    config = Defence(
        writer=dataclasses.replace(WRITER, model=str(folder / "decoder")),
        lengths=Lengths(24, (24,), 8),
    )
    config = dataclasses.replace(
        config, teacher=dataclasses.replace(config.teacher, model=teacher)
    )
    shown = [tiny_job.Row(text, "") for text in SHOWN]
    public = folder / "shown.csv"
    tiny_job.write(public, shown, columns=("text",))
    source = Source("rows", [(2, {"text": "nothing of these", "label": NAMES[0]})])
    said = []
    found = _generated.generated_references(config, source, public, said.append)
    texts = [cells["text"] for _, cells in found.rows]
    assert texts == written(shown=2)
    assert {cells["label"] for _, cells in found.rows} == {*NAMES}
    assert any("texts written" in one for one in said)
    own = Source("rows", [(2, {"text": texts[0], "label": NAMES[0]})])
    with pytest.raises(ValueError, match="exact: 1"):
        _generated.generated_references(config, own, public)
    dropping = dataclasses.replace(config, overlap="drop")
    kept = _generated.generated_references(dropping, own, public)
    assert len(kept.rows) == 13


@pytest.mark.parametrize(
    ("references", "public", "writer", "columns", "message"),
    [
        ("generated", None, "m", {}, "public a file of texts"),
        ("generated", "p.csv", "", {}, "writer.model a public language model"),
        ("generated", "p.csv", "m", {"pair": "b"}, "columns.pair ''"),
        ("trusted.csv", "p.csv", "", {}, "only with references 'generated'"),
        ("trusted.csv", None, "m", {}, "only with references 'generated'"),
    ],
)
def test_inputs_of_generated_references(references, public, writer, columns, message):
    config = Defence(writer=PublicWriter(model=writer), columns=Columns(**columns))
    with pytest.raises(ValueError, match=message):
        _generated.require_inputs(config, references, public)
    _generated.require_inputs(Defence(), "trusted.csv", None)
