"""One function from private rows to a student whose pipeline is measured."""

import collections
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import data, storage
from protojax.federated import nodes
from protojax.models import Model, hf, saved
from protojax.pipelines import _run_file
from protojax.pipelines._outputs import write_student
from protojax.pipelines.defence import Watch
from protojax.pipelines.privacy import training as training_lib
from protojax.pipelines.privacy._replicas import Machine
from protojax.pipelines.privacy.accounting import audit_of, guarantee_of
from protojax.pipelines.privacy.inputs import PrivateJob, prepare, queries_of
from protojax.pipelines.privacy.recipes import named, with_epochs
from protojax.pipelines.privacy.run_settings import Privatise
from protojax.pipelines.privacy.settings import Recipe
from protojax.pipelines.privacy.shadows import Shadowed, shadow_logits
from protojax.pipelines.privacy.shared import Shared, shared_of
from protojax.pipelines.privacy.stopping import kept_epochs
from protojax.privacy import (
    Leakage,
    complementary_halves,
    leakage,
    require_stated,
)
from protojax.privacy.canaries import mislabelled
from protojax.reports import leaks
from protojax.reports import privacy as pages

# The pipelines' own numbers are 0 to P - 1; the shipped model's is none of them.
_SHIPPED = 1_000_000


class Privatised(NamedTuple):
    """The result of a run.

    Attributes:
        student: the model that is shipped, with its tokenizer and label names.
        leakage: what its pipeline gives away of its rows, None where not measured.
        facts: all that the card says.
        out: the folder that everything was written to.
    """

    student: Model
    leakage: Leakage | None
    facts: pages.PrivacyFacts
    out: Path


def privatise(
    private: str | Path,
    public: str | Path,
    *,
    teacher: str = "scratch",
    student: str = "scratch",
    test: str | Path | None = None,
    config: Privatise | None = None,
    out: str | Path,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> Privatised:
    """A student of private rows, exported with a card of what its pipeline gives away.

    A teacher learns the private rows and answers on the public ones, from which the
    student learns. Then the same recipe is run many times, each on another half of the
    private rows with some wrong labels among them, and attacked. That measures the
    recipe at half of the rows, not the one model that is shipped. The same call goes on
    where a killed one stopped.

    Args:
        private: a file of labelled rows: CSV, TSV, JSONL or Parquet.
        public: a file of texts that hold nothing of the private ones.
        teacher: the folder of a pretrained encoder, or "scratch"; it is trained.
        student: likewise, or "FOLDER:0,2" for some of its layers, or "layers:0,2" of
            what the teacher starts from.
        test: a file of labelled rows that nothing learns from, to measure accuracy on.
        config: all other settings; None for the defaults.
        out: the folder to write to.
        watch: is told of the progress.
        command: the command line, for run.json.

    Raises:
        OSError, ValueError: in one line, before anything is written, where an input is
            missing or does not fit, or a public row holds something of a private one.
            ValueError also where the measurement refutes the epsilon that is stated;
            then nothing is exported.
    """
    config, watch, out = config or Privatise(), watch or Watch(), Path(out)
    watch.describe("the rows are read")
    job = prepare(
        config,
        private=private,
        public=public,
        teacher=teacher,
        student=student,
        test=test,
        describe=watch.describe,
    )
    # Loads the models, whose errors come before anything is written.
    shared = _shared(job, job.config.chosen, watch)
    clock = _run_file.Clock(_run_file.open_run(out, job.identity))
    about = _run_file.about(job.paths)
    recorded = _run_file.recorded(
        out, job.identity, paths=job.paths, seconds=clock.seconds, command=command
    )
    with recorded as finish:
        model, facts = _run(job, shared, out / _run_file.WORK, watch, clock)
        record = facts.leakage and facts.leakage.record()
        storage.write_json(out / "leakage.json", record or {"measured": False})
        write_student(out / "student", model, pages.card_of(facts, about))
        with storage.atomic(out / "report.html") as file:
            file.write(leaks.page_of(facts).encode())
        clock("reports")
        finish(result_of(facts))
    return Privatised(model, facts.leakage, facts, out)


def _shared(job: PrivateJob, recipe: Recipe, watch: Watch) -> Shared:
    """The common part of pipelines, for the run of the shipped model."""
    config = job.config
    return shared_of(
        job.rows,
        [recipe],
        Machine(nodes.make_mesh(1, jax.devices()[:1])),
        lengths=config.lengths,
        vocab_size=config.vocab_size,
        seed=config.seed,
        on_progress=watch.advance,
    )


def _run(
    job: PrivateJob,
    shared: Shared,
    work: Path,
    watch: Watch,
    clock: Callable[[str], None],
) -> tuple[Model, pages.PrivacyFacts]:
    """The shipped model, and all that is known of it."""
    config, rows, recipe = job.config, job.rows, job.config.chosen
    if config.early_stopping:
        watch.describe("the number of epochs is chosen on public rows")
        epochs = kept_epochs(
            work / "epochs.json",
            rows,
            recipe,
            len(rows.private.texts),
            most=config.early_stopping,
            lengths=config.lengths,
            vocab_size=config.vocab_size,
            seed=config.seed,
        )
        recipe = with_epochs(recipe, epochs)
        shared = _shared(job, recipe, watch)
        clock("number of epochs")
    watch.describe("teacher and student learn")
    model, accuracy = _shipped(job, recipe, shared, work, watch)
    clock("teacher and student")
    measured = Measured(None, 0, None, None)
    if config.pipelines:
        measured = _measured(job, recipe, work, watch)
        clock("measurement")
    stated = guarantee_of(recipe, len(rows.private.texts), queries_of(recipe, rows))
    facts = pages.PrivacyFacts(
        recipe=config.recipe,
        shipped=recipe.shipped,
        epochs=recipe.teacher.epochs,
        private=len(rows.private.texts),
        public=len(rows.public.texts),
        dropped=job.dropped,
        label_names=job.label_names,
        accuracy=accuracy,
        pipelines=config.pipelines,
        canaries=measured.canaries,
        pipeline_accuracy=measured.accuracy,
        guarantee=stated and stated._asdict(),
        leakage=measured.leakage,
        audit=measured.audit,
        written=0 if rows.written is None else len(rows.written.texts),
        groups=len({*(rows.private.sources or ())}),
    )
    return model, facts


def _shipped(
    job: PrivateJob, recipe: Recipe, shared: Shared, work: Path, watch: Watch
) -> tuple[Model, float | None]:
    """The shipped model, trained once, and its accuracy on the test rows."""
    rows, folder, note = job.rows, work / "student" / "model", work / "accuracy.json"
    encoder = recipe.student if recipe.shipped == "student" else recipe.teacher
    count = len(rows.private.texts)
    if not (folder.exists() and note.exists()):
        watch.total(training_lib.work_of(shared, {"shipped": recipe}, count))
        found = training_lib.run_family(
            shared, {"shipped": recipe}, np.ones((1, count), bool), [_SHIPPED]
        )["shipped"]
        accuracy = None
        if len(rows.test.texts):
            said = found.logits[0, rows.places[2]].argmax(-1)
            accuracy = float(np.mean(said == np.asarray(rows.test.labels)))
        storage.write_json(note, {"accuracy": accuracy})
        model = shared.learners[encoder].model._replace(
            params=nodes.unstack(found.params, 0), label_names=job.label_names
        )
        saved.save(folder, model)
    # Loaded from here in any case, so that a resumed run has the same model.
    saved.check(folder, run=folder.parent)
    model = hf.load_hf(folder, num_labels=rows.num_labels, **encoder.computation)
    return model, json.loads(note.read_text())["accuracy"]


class Measured(NamedTuple):
    """The measurement of a recipe: leakage, canaries, accuracy, audit of epsilon."""

    leakage: Leakage | None
    canaries: int
    accuracy: float | None
    audit: Mapping[str, Any] | None


def _measured(job: PrivateJob, recipe: Recipe, work: Path, watch: Watch) -> Measured:
    """The measurement of the recipe by many pipelines.

    Raises:
        ValueError: where they refute the epsilon that it states.
    """
    config, rows = job.config, job.rows
    count, largest = len(rows.private.texts), 0
    groups = rows.private.sources
    if groups is None:
        # An even number, of which each pipeline learns one half.
        count -= count % 2
    else:
        largest = max(collections.Counter(groups).values())
    planted, kinds = mislabelled(
        data.take(rows.private, np.arange(count)),
        np.random.default_rng(config.seed),
        share=config.canaries,
    )
    members = complementary_halves(
        count,
        config.pipelines,
        seed=config.seed,
        groups=None if groups is None else np.asarray(groups),
    )
    # In a plain teacher the planted rows must be found, or the attack is too weak.
    recipes = {"shipped": recipe, "reference": named("teacher", config.base)}
    found = shadow_logits(
        recipes,
        rows._replace(private=planted),
        members,
        work / "pipelines",
        lengths=config.lengths,
        vocab_size=config.vocab_size,
        seed=config.seed,
        at_once=config.at_once,
        most_apart=largest,
        watch=watch,
    )
    watch.describe("the pipelines are attacked")
    measured = leakage(
        found["shipped"].logits,
        members,
        planted.labels,
        kinds=kinds,
        groups=None if groups is None else np.asarray(groups),
        reference=found["reference"].logits,
        seed=config.seed,
    )
    audit = _audit(job, recipe, found, members, planted.labels, kinds)
    accuracy = None
    if len(rows.test.texts):
        accuracy = float(found["shipped"].accuracy.mean())
    return Measured(measured, int((kinds != "ordinary").sum()), accuracy, audit)


def _audit(
    job: PrivateJob,
    recipe: Recipe,
    found: Mapping[str, Shadowed],
    members: np.ndarray,
    labels: np.ndarray,
    kinds: np.ndarray,
) -> Mapping[str, Any] | None:
    """The epsilon of the pipelines, stated and audited; None where none is stated."""
    # Of half of the rows, on which the pipelines are run.
    queries = queries_of(recipe, job.rows)
    stated = guarantee_of(recipe, int(members[0].sum()), queries)
    audit = audit_of(
        stated,
        found["shipped"].logits,
        found["reference"].logits,
        members,
        labels,
        kinds=kinds,
        seed=job.config.seed,
    )
    if audit is None:
        return None
    require_stated(audit.bound, stated.epsilon)
    return {"epsilon": stated.epsilon, **audit._asdict()}


def result_of(facts: pages.PrivacyFacts) -> Mapping[str, Any]:
    """The figures of a finished run for run.json; no text, and nothing of single rows.

    Args:
        facts: of the run.
    """
    kept = facts._asdict()
    found = kept.pop("leakage")
    return {**kept, "sentence": found and found.sentence}
