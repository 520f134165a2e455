"""One training run: its data, plan, log and checkpoints, from which it can resume."""

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import distillation
from protojax.base import Prototypes, PyTree, TrainState
from protojax.data import batches
from protojax.data import tokens as tokens_lib
from protojax.data.sequences import Sequences
from protojax.models import EncoderConfig, Model, vocabulary
from protojax.models.language import LanguageConfig, LanguageModel
from protojax.storage import checkpoint, fingerprint
from protojax.training import plans, programs
from protojax.training.log import MetricsLog
from protojax.training.objective import Objective
from protojax.training.predict import AnyLengths
from protojax.training.step import TrainConfig, fit, init_state

# Called with the work done, in rows times `row_cost`.
OnProgress = Callable[[float], None]


class Store(NamedTuple):
    """The place of a run's checkpoints and log.

    Attributes:
        folder: the run's folder.
        every: dispatches between two checkpoints.
        keep: whether the last checkpoint stays when the run has ended.
    """

    folder: Path
    every: int = 10
    keep: bool = False

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"


class Trained(NamedTuple):
    """The result of one training run.

    Attributes:
        params: the model's parameters.
        projection: `[student_dim, teacher_dim]`, or None.
        step_seconds: mean seconds of a step, without compilation.
        at_once: the models trained together; `step_seconds` is one model's share.
    """

    params: PyTree
    projection: np.ndarray | None
    step_seconds: float
    at_once: int = 1


class Run(NamedTuple):
    """The data and settings of one model's training.

    Attributes:
        name: identifies the run in the log and in its checkpoints.
        model: the initial model.
        tokens: the rows.
        labels: `[rows]`; None for `Sequences`.
        train: optimiser, epochs and batch size.
        seed: seed of the row order, of dropout and of the projection.
        columns: the batch's other columns, `[rows, ...]`.
        objective: the objective to minimise; supervised by default.
        prototypes: for an objective with a prototype constraint.
        secret: whether the random draws of a private run come from the operating
            system instead of from `seed`.
    """

    name: str
    model: Model | LanguageModel
    tokens: tokens_lib.Tokens | Sequences
    labels: np.ndarray | None
    train: TrainConfig
    seed: int
    columns: Mapping[str, np.ndarray] = MappingProxyType({})
    objective: Objective = Objective()
    prototypes: Prototypes | None = None
    secret: bool = False

    @property
    def private(self) -> bool:
        """Whether training is differentially private (Poisson-sampled batches)."""
        return self.objective.private


def row_cost(config: EncoderConfig | LanguageConfig) -> float:
    """The work of a row in units of progress: millions of weights.

    Only the weights of layers count, as an encoder's: embeddings are looked up, and
    texts have about the same number of tokens for all models.
    """
    width, inner = config.hidden_size, config.intermediate_size
    layers = config.num_layers + getattr(config, "encoder_layers", 0)
    return layers * width * (4 * width + 2 * inner) / 1e6


def used_ids(runs: Sequence[Run]) -> np.ndarray:
    """The rows of the word embedding that runs of one model need.

    A private run needs all: leaving out words would reveal to anyone who has the
    student that no training row contains them. So does a model that writes, which may
    choose among all.
    """
    config = runs[0].model.config
    if any(run.private or isinstance(run.tokens, Sequences) for run in runs):
        return np.arange(config.vocab_size)
    ids = np.concatenate([run.tokens.input_ids for run in runs])
    # The model's padding keeps its number: positions are counted by it.
    pad_id = max(runs[0].tokens.pad_id, config.pad_id)
    return vocabulary.used_ids(ids, config.vocab_size, pad_id=pad_id)


def narrowed(run: Run, ids: np.ndarray) -> Run:
    """The run with its model's vocabulary reduced to `ids`, see `vocabulary`."""
    if len(ids) == run.model.config.vocab_size:
        return run
    renumbered = vocabulary.renumber(run.tokens.input_ids, ids)
    return run._replace(
        model=vocabulary.narrow(run.model, ids),
        tokens=run.tokens._replace(input_ids=renumbered),
    )


def initial_params(
    model: Model | LanguageModel, columns: Mapping[str, np.ndarray], seed: int
):
    """The initial trainable parameters of a student.

    They include a projection if there are teacher features whose width differs from the
    model's.
    """
    features, width = columns.get("teacher_features"), model.config.hidden_size
    if features is None or features.shape[-1] == width:
        return distillation.student_params(model.params)
    shape, key = (width, features.shape[-1]), jax.random.key(seed)
    # Orthogonal, so that a narrower student's distances are kept at first.
    projection = jax.nn.initializers.orthogonal()(key, shape)
    return distillation.student_params(model.params, projection)


def start_of(run: Run, optimizer, num_steps: int) -> TrainState:
    """The initial state of a run of `num_steps` steps."""
    return init_state(
        initial_params(run.model, run.columns, run.seed),
        optimizer,
        num_steps=num_steps,
        seed=None if run.secret else run.seed,
        prototypes=run.prototypes,
    )


def end_of(run: Run, params: PyTree, ids: np.ndarray, seconds: float) -> Trained:
    """The result of a run, with the full vocabulary of its model."""
    trained = params["model"]
    if len(ids) < run.model.config.vocab_size:
        trained = vocabulary.widen(run.model.params, trained, ids)
    # On the host, so that finished models hold no memory of the device.
    return Trained(jax.device_get(trained), params.get("projection"), seconds)


def identity_of(
    runs: Sequence[Run], ids: np.ndarray, lengths: AnyLengths, *more: str
) -> str:
    """The identity of the checkpoints of runs that train in one program.

    It changes with all that a result depends on: rows with labels and columns, words,
    optimiser, epochs, objective, prototypes, initial weights, lengths, and `secret`.

    Args:
        runs: the runs, narrowed to some words.
        ids: these words.
        lengths: how rows are padded and batched.
        *more: further settings that the result depends on, as texts.
    """
    # The texts of settings, which name all fields: another value is another run.
    said = [f"{r.name} {r.seed} {r.secret} {r.train} {r.objective}" for r in runs]
    held = [
        (r.tokens[:3], r.labels, dict(r.columns), r.prototypes, r.model.params)
        for r in runs
    ]
    # The structure has the names of columns, which may be all that differs.
    arrays, structure = jax.tree.flatten(held)
    more = (*more, f"{lengths} {structure}")
    return fingerprint(*said, *more, ids, *map(np.asarray, arrays))


class Saver(NamedTuple):
    """The functions that read and write the checkpoints of one kind of state.

    Attributes:
        restore: `state -> (state, dispatches done, extra)`, None if there is no
            checkpoint; raises ValueError if none is intact.
        write: `(state, dispatches done, extra, is the end)`.
        scope: a context manager that is entered while a run writes.
    """

    restore: Callable[[Any], tuple[Any, int, dict[str, Any]] | None]
    write: Callable[[Any, int, dict[str, Any], bool], None]
    scope: AbstractContextManager = nullcontext()


def resumed(name: str, saver: Saver, state: Any) -> tuple[Any, int, dict[str, Any]]:
    """The state of a run's last intact checkpoint, or the initial state.

    Returns:
        The state, the dispatches done, and the checkpoint's `extra`.
    """
    try:
        found = saver.restore(state)
    except ValueError as error:
        programs.logger.warning(
            "%s starts anew, no checkpoint is intact: %s", name, error
        )
        found = None
    return (state, 0, {}) if found is None else found


def fit_saved(
    dispatch,
    state: Any,
    items: Sequence[Any],
    load: Callable[[Any], Any],
    *,
    store: Store,
    saver: Saver,
    log: MetricsLog,
    start: int = 0,
    extra: Mapping[str, Any] = MappingProxyType({}),
    on_dispatch: Callable[[int, dict], None] | None = None,
) -> Any:
    """The state at the end of a plan, with checkpoints written during training.

    Args:
        dispatch: `(state, loaded) -> (state, metrics)`.
        state: from `resumed`; donated.
        items: one item per dispatch.
        load: turns an item into the second argument of `dispatch`.
        store: where checkpoints are written.
        saver: how they are written.
        log: the run's log.
        start: the number of items already done.
        extra: what checkpoints hold in addition to the log's `extra`.
        on_dispatch: called with the items done and metrics; the log by default.
    """
    with saver.scope:

        def save(state: Any, done: int) -> None:
            # The log first: a resumed run removes surplus lines, but cannot restore
            # lines that were lost.
            log.flush()
            saver.write(state, done, {**log.extra, **extra}, False)
            log.resume_timing()

        state = fit(
            dispatch,
            state,
            items,
            load,
            start=start,
            save=save,
            save_every=store.every,
            on_dispatch=log if on_dispatch is None else on_dispatch,
        )
        log.flush()
        if store.keep and start < len(items):
            saver.write(state, len(items), {**log.extra, **extra}, True)
    return state


def train(
    whole: Run,
    *,
    lengths: AnyLengths,
    store: Store,
    on_progress: OnProgress = lambda units: None,
) -> Trained:
    """The trained model of a run; a run that was killed resumes from its checkpoint.

    The seeds of a secret run's batches and noise come from the operating system's
    entropy and are stored only in its checkpoints, which it needs to resume. They are
    deleted at its end (`remove_checkpoints`), whatever the store says.

    Args:
        whole: the run, with the full vocabulary.
        lengths: how rows are padded and batched.
        store: where checkpoints and the log are written.
        on_progress: called with the work done.
    """
    ids = used_ids([whole])
    run = narrowed(whole, ids)
    dispatch, optimizer = programs.dispatch_of(
        run.model.config, run.objective, run.train.optimizer
    )
    make_plan = plans.poisson_plan if run.private else plans.epochs_plan
    sampling_seed = secrets.randbits(128) if run.secret else run.seed
    plan = make_plan(run.tokens.lengths, run.train, lengths, sampling_seed)
    saver = saver_of(store.checkpoints, identity_of([run], ids, lengths))
    # Steps without rows are skipped, so they are no part of the schedule.
    state = start_of(run, optimizer, batches.num_steps(plan))
    state, start, extra = resumed(run.name, saver, state)
    if run.secret and start:
        # A resumed run must draw the batches that it began with.
        sampling_seed = extra["sampling_seed"]
        plan = make_plan(run.tokens.lengths, run.train, lengths, sampling_seed)
    log = MetricsLog(
        store.folder,
        run.name,
        plan,
        cost=row_cost(run.model.config),
        start=start,
        extra=extra,
        on_progress=on_progress,
    )
    state = fit_saved(
        dispatch,
        state,
        plan,
        lambda item: batches.make_batch(run.tokens, run.labels, item, **run.columns),
        # A last checkpoint would hold the key from which the noise follows.
        store=store._replace(keep=store.keep and not run.secret),
        saver=saver,
        log=log,
        start=start,
        extra={"sampling_seed": sampling_seed} if run.secret else {},
    )
    return end_of(whole, jax.device_get(state.params), ids, log.step_seconds)


def saver_of(folder: Path, identity: str) -> Saver:
    """The functions that read and write the checkpoints of a single run.

    Args:
        folder: of the checkpoints.
        identity: of the run: all that its result depends on.
    """

    def restore(state):
        if checkpoint.latest_step(folder) is None:
            return None
        return checkpoint.restore(folder, state, fallback=True, identity=identity)

    def write(state, done, extra, ended):
        # Two during training: the older one is read if the newer one is damaged.
        keep = 1 if ended else 2
        checkpoint.save(folder, state, done, keep=keep, extra=extra, identity=identity)

    return Saver(restore, write)


def remove_checkpoints(store: Store, *, secret: bool = False) -> None:
    """Removes a finished run's checkpoints, unless its store keeps the last.

    The checkpoints of a secret run are always removed: noise that can be computed from
    a checkpoint gives no privacy.

    Args:
        store: the run's store.
        secret: whether the run's random draws are secret.
    """
    if secret or not store.keep:
        shutil.rmtree(store.checkpoints, ignore_errors=True)
