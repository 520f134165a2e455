"""References that a public language model writes, where a user has no trusted rows.

Their labels are the teacher's, which is under suspicion: on texts without its trigger
it says what it honestly learned, right or wrong, and rows are compared with that: more
honest ones are rejected than is stated. The texts that the model is shown are
therefore public ones, never the rows under test, whose triggers it would copy.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from protojax import validate
from protojax.base import Examples
from protojax.data.readers import Source
from protojax.models import hf
from protojax.pipelines import inputs
from protojax.pipelines.settings import Defence
from protojax.privacy.overlap import clean_rows
from protojax.training import predict
from protojax.training.predict import Features

# In place of a file of references.
GENERATED = "generated"


def require_inputs(
    config: Defence, references: str | Path | None, public: str | Path | None
) -> None:
    """Raises unless all that generated references take is there, or nothing of it.

    Args:
        config: the settings.
        references: a file, `GENERATED`, or None.
        public: a file of public texts, or None.

    Raises:
        ValueError: naming what is missing, or has no use.
    """
    writer, columns = config.writer.model, config.columns
    if str(references) != GENERATED:
        only = f"only with references {GENERATED!r}"
        validate.require(public is None, "public", public, f"None: it is {only}")
        validate.require(not writer, "writer.model", writer, f"'': it is {only}")
        return
    some = public is not None
    validate.require(some, "public", public, "a file of texts for the writer to see")
    validate.require(bool(writer), "writer.model", writer, "a public language model")
    for name in ("pair", "reference"):
        value = getattr(columns, name)
        bound = "'' where references are generated"
        validate.require(not value, f"columns.{name}", value, bound)


def generated_references(
    config: Defence,
    rows: Source,
    public: Path,
    describe: Callable[[str], None] = lambda text: None,
) -> Source:
    """References with the teacher's labels, as if they were read from a file.

    Args:
        config: the settings, the sources of the models among them.
        rows: the rows under test, of which no reference may hold anything.
        public: a file of texts that nobody under suspicion has written.
        describe: called with a description of the current work.

    Raises:
        OSError, ValueError: in one line, where an input is missing or does not fit, or
            a text that was written holds something of a row.
    """
    columns = config.columns
    shown = _texts(inputs.open_rows(public, columns.encoding), columns.text)
    texts = config.writer.write(shown, seed=config.seed, describe=describe)
    own = _texts(rows, columns.text)
    kept = clean_rows(texts, own, action=config.overlap, name="written")
    texts = [texts[row] for row in np.flatnonzero(kept)]
    describe("the teacher labels the texts that were written")
    names = hf.class_names(config.teacher.model)
    if names == tuple(f"LABEL_{number}" for number in range(len(names))):
        names = tuple(map(str, range(len(names))))
    teacher = hf.load_hf(
        config.teacher.model, num_labels=len(names), **config.teacher.computation
    )
    examples = Examples(texts, None, np.zeros(len(texts), np.int32))
    said = predict.ask(teacher, examples, config.lengths, Features()).logits.argmax(-1)
    counts = np.bincount(said, minlength=len(names))
    few = [name for name, count in zip(names, counts, strict=True) if count < 2]
    bound = "two or more of each class the teacher says: set more writer.texts"
    validate.require(not few, "written texts", f"fewer of {few}", bound)
    return Source(
        f"{GENERATED} references",
        [
            (number, {columns.text: text, columns.label: names[label]})
            for number, (text, label) in enumerate(zip(texts, said, strict=True), 1)
        ],
    )


def _texts(source: Source, column: str) -> list[str]:
    """The texts of a file that are not empty."""
    first = source.rows[0][1]
    validate.require(column in first, "columns.text", column, f"one of {[*first]}")
    found = (str(cells.get(column) or "").strip() for _, cells in source.rows)
    return [text for text in found if text]
