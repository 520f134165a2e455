"""The calibration of a teacher's distillability, by reinforcement against a proxy.

A teacher draws texts for prompts. A verifier says which solve the task; a frozen proxy
says how much each is like what a small model would have written. The teacher is moved
towards texts that do both, or, with η below 0, towards right texts that the proxy would
not have written, while its divergence from the original is bounded.

A teacher of η < 0 harms those who learn from its texts. Measure who is harmed, and what
attackers who know of it still learn, before a word is said about safety.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from protojax import distillation, storage, validate
from protojax.base import PyTree, TrainState
from protojax.models import language
from protojax.models.language import LanguageConfig, LanguageModel
from protojax.rl.advantages import ADVANTAGES, calibrated_advantage, leave_one_out
from protojax.rl.policy import PolicyBatch, policy_loss
from protojax.rl.problems import (
    Drawn,
    Problems,
    World,
    build_world,
    draw,
    evaluate,
    rows_of,
    split,
)
from protojax.rl.rollouts import Rollout
from protojax.rl.settings import Calibration
from protojax.rl.verifiers import VerifierFn
from protojax.training.programs import TRACES, shape_of
from protojax.training.step import (
    OPTIMIZER,
    AdamW,
    Step,
    init_state,
    make_dispatch,
    make_step,
)
from protojax.training.trainer import Store, resumed, saver_of

# Rollouts whose mean divergence is held against the budget.
_WINDOW = 10
# β changes by at most 10 % a rollout.
_GAIN, _MOST = 0.5, 0.2
STOPS = ("steps", "kl_budget", "skill")


class Calibrated(NamedTuple):
    """The result of a calibration.

    Attributes:
        teacher: the model at its last evaluation within all limits.
        history: a record of each rollout: means over its texts, β and the step's
            metrics; divergences in nats a text.
        evaluations: a record of each evaluation on held-out problems; `rollouts` says
            after how many, 0 for the original.
        before: the original's texts for the held-out problems.
        after: the returned teacher's, drawn with the same random numbers.
        stopped: a name in `STOPS`.
        rollouts: after how many rollouts the returned teacher was taken.
    """

    teacher: LanguageModel
    history: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    before: Drawn
    after: Drawn
    stopped: str
    rollouts: int


class _State(NamedTuple):
    """The state of a checkpoint; `kept` are the last parameters within all limits."""

    train: TrainState
    kept: PyTree


def calibrate(
    teacher: LanguageModel,
    proxy: LanguageModel,
    problems: Problems,
    settings: Calibration,
    *,
    verifiers: Sequence[str | VerifierFn],
    store: Store | None = None,
    on_rollout: Callable[[Mapping[str, float]], None] = lambda record: None,
) -> Calibrated:
    """A teacher that is easier (η > 0) or harder (η < 0) to distil, and its record.

    A = GN(task) + η GN(log π_proxy(text) − log π_teacher(text)), each normalised within
    the texts of a prompt; then clipped policy steps with a penalty on the divergence
    from the original, whose weight β grows, by at most 10 % a rollout, while the
    divergence is above `kl_target`. It ends after `steps` rollouts, where the
    divergence exceeds `kl_budget`, or where held-out skill has fallen by more than
    `skill_loss`. A run that was killed goes on from its checkpoint, bit by bit the
    same.

    Args:
        teacher: the model to calibrate, with its tokenizer.
        proxy: the frozen model that stands for students, with its own tokenizer.
        problems: prompts and answers; some are held out.
        settings: all else.
        verifiers: names in `VERIFIERS`, or functions `(prompt, text, answer) -> float`;
            the task reward is their product. One that looks at the answer alone pays
            for wrong chains that end well.
        store: where checkpoints are written, None for nowhere.
        on_rollout: called with the record of each rollout.

    Raises:
        ValueError: before anything is computed, on what does not fit, see
            `build_world`; later, where a loss is not finite.

    References:
        arXiv:2604.18963, whose rewards and signs these are. The budget (an adaptive β
        after Ziegler et al., 2019, arXiv:1909.08593, that never falls below its
        beginning), the bound on the proxy's tokens, `correct_only` and the limit on
        skill are ours.
    """
    world = build_world(teacher, proxy, problems, settings, verifiers)
    dispatch, optimizer = _dispatch_of(
        teacher.config,
        settings.low,
        settings.high,
        settings.normalizer,
        settings.max_new,
        AdamW(**{name: getattr(settings, name) for name in OPTIMIZER}),
    )
    state = init_state(
        distillation.student_params(teacher.params),
        optimizer,
        num_steps=settings.steps * settings.passes * settings.minibatches,
        seed=settings.seed,
    )
    training, held_out = split(len(problems.prompts), settings)
    key = jax.random.key(settings.seed)
    before = evaluate(world, teacher.params, held_out, jax.random.fold_in(key, 0))
    run = _Run(world, training, held_out, key, dispatch, before, store, on_rollout)
    state, extra = run.to_its_end(
        _State(state, jax.tree.map(jnp.array, teacher.params))
    )
    calibrated = teacher._replace(params=state.kept)
    after = evaluate(world, state.kept, held_out, jax.random.fold_in(key, 0))
    return Calibrated(
        calibrated,
        extra["history"],
        extra["evaluations"],
        before,
        after,
        extra["stopped"],
        extra["kept_at"],
    )


def adapted(beta: float, kl: float, settings: Calibration) -> float:
    """β after a rollout of the given divergence.

    β · (1 + 0.5 · clip(KL / target − 1, −0.2, 0.2)), at least the β of the beginning

    >>> settings = Calibration(beta=0.1, kl_target=2.0)
    >>> round(adapted(0.1, 9.0, settings), 3), adapted(0.1, 0.5, settings)
    (0.11, 0.1)

    Args:
        beta: β so far; 0 stays 0.
        kl: the rollout's mean divergence, nats a text.
        settings: name the target and the first β.
    """
    error = np.clip(kl / settings.kl_target - 1, -_MOST, _MOST)
    return max(settings.beta, float(beta * (1 + _GAIN * error)))


def skill_fell(drawn: Drawn, before: Drawn, most: float) -> bool:
    """Whether the share of solved problems has surely fallen by more than allowed.

    That is, whether its one-sided 95 % upper bound (Clopper and Pearson) is below the
    share before minus `most`.

    Args:
        drawn: one text a problem.
        before: the original's texts.
        most: the allowed loss, in [0, 1].
    """
    count = int(drawn.solved.sum())
    test = scipy.stats.binomtest(count, len(drawn.rows), alternative="less")
    bound = test.proportion_ci(0.95, method="exact").high
    return bool(bound < before.solved.mean() - most)


def lesson(
    found: Rollout, drawn: Drawn, settings: Calibration, beta: float, order: np.ndarray
) -> PolicyBatch:
    """The batches of a rollout's steps.

    Args:
        found: the rollout, on the device.
        drawn: what is known of its texts.
        settings: of the calibration.
        beta: β.
        order: `[steps, rows]`, the texts of each step.
    """
    groups = settings.prompts, settings.draws
    advantages = calibrated_advantage(
        drawn.task.reshape(groups),
        drawn.calibration.reshape(groups),
        settings.eta,
        correct_only=settings.correct_only,
        advantage=ADVANTAGES[settings.advantage],
    )
    weight = beta
    if settings.kl == "reward":
        # Not normalised: β has the same unit at either place.
        drift = (drawn.log_prob - drawn.reference_log_prob).reshape(groups)
        advantages, weight = advantages - beta * leave_one_out(drift), 0.0
    columns = PolicyBatch(
        found.sequences,
        jnp.asarray(advantages.ravel(), jnp.float32),
        found.log_probs,
        found.reference_log_probs,
        jnp.full(settings.rows, weight, jnp.float32),
    )
    places = jnp.asarray(order)
    return jax.tree.map(lambda column: column[places], columns)


@dataclasses.dataclass(frozen=True)
class _Run:
    """The loop of a calibration."""

    world: World
    training: np.ndarray
    held_out: np.ndarray
    key: jax.Array
    dispatch: Step
    before: Drawn
    store: Store | None
    on_rollout: Callable[[Mapping[str, float]], None]

    def to_its_end(self, state: _State) -> tuple[_State, dict[str, Any]]:
        """The state at the end, and what is recorded."""
        settings, saver, done = self.world.settings, None, 0
        extra = {
            "beta": settings.beta,
            "history": [],
            "evaluations": [{"rollouts": 0, **self.before.means()}],
            "stopped": "",
            "kept_at": 0,
        }
        if self.store is not None:
            saver = saver_of(self.store.checkpoints, self.identity())
            state, done, held = resumed("the calibration", saver, state)
            extra |= held
        while not extra["stopped"]:
            state, extra = self.advance(state, extra, done)
            done += 1
            ended = bool(extra["stopped"])
            if saver is not None and (ended or done % self.store.every == 0):
                saver.write(state, done, extra, ended)
        return state, extra

    def advance(
        self, state: _State, extra: dict[str, Any], number: int
    ) -> tuple[_State, dict[str, Any]]:
        """The state and the record after one more rollout."""
        settings, beta = self.world.settings, extra["beta"]
        rows = rows_of(self.training, settings, number)
        key = jax.random.fold_in(self.key, number + 1)
        params = state.train.params["model"]
        found, drawn = draw(self.world, params, rows, key, draws=settings.draws)
        order = step_rows(settings, number)
        batches = lesson(found, drawn, settings, beta, order)
        train, metrics = self.dispatch(state.train, batches)
        state = state._replace(train=train)
        record = {"rollout": number, "beta": beta, **drawn.means()}
        record |= {name: float(np.mean(value)) for name, value in metrics.items()}
        finite = bool(np.isfinite(record["loss"]))
        validate.require(finite, "loss", record["loss"], "finite")
        history = [*extra["history"], record]
        extra = extra | {
            "history": history,
            "beta": adapted(beta, record["kl"], settings),
        }
        self.on_rollout(record)
        recent = [one["kl"] for one in history[-_WINDOW:]]
        if len(recent) == _WINDOW and np.mean(recent) > settings.kl_budget:
            return state, extra | {"stopped": "kl_budget"}
        last = number + 1 == settings.steps
        if last or (number + 1) % settings.evaluate_every == 0:
            state, extra = self.judged(state, extra, number + 1)
        if last and not extra["stopped"]:
            extra = extra | {"stopped": "steps"}
        return state, extra

    def judged(
        self, state: _State, extra: dict[str, Any], done: int
    ) -> tuple[_State, dict[str, Any]]:
        """The state and the record after an evaluation on held-out problems."""
        settings, params = self.world.settings, state.train.params["model"]
        key = jax.random.fold_in(self.key, 0)
        drawn = evaluate(self.world, params, self.held_out, key)
        record = {"rollouts": done, **drawn.means()}
        extra = extra | {"evaluations": [*extra["evaluations"], record]}
        if skill_fell(drawn, self.before, settings.skill_loss):
            return state, extra | {"stopped": "skill"}
        if record["kl"] > settings.kl_budget:
            return state, extra | {"stopped": "kl_budget"}
        # A copy: the next step donates its state.
        kept = jax.tree.map(jnp.array, params)
        return state._replace(kept=kept), extra | {"kept_at": done}

    def identity(self) -> str:
        """The identity of the run's checkpoints: all that its result depends on."""
        world = self.world
        named = [getattr(one, "__qualname__", str(one)) for one in world.verifiers]
        return storage.fingerprint(
            repr(world.settings),
            *named,
            storage.hash_json([list(column) for column in world.problems]),
            repr((world.teacher.config, world.proxy.model.config)),
            *(np.asarray(part) for part in (*world.prompts, *world.proxy.prompts)),
            *map(np.asarray, jax.tree.leaves(world.teacher.params)),
            *map(np.asarray, jax.tree.leaves(world.proxy.model.params)),
        )


def step_rows(settings: Calibration, number: int) -> np.ndarray:
    """The texts of each step of a rollout, `[passes * minibatches, rows]`.

    >>> step_rows(Calibration(prompts=2, draws=2, minibatches=2, passes=3), 0).shape
    (6, 2)

    Args:
        settings: of the calibration.
        number: of the rollout.
    """
    rng = np.random.default_rng([settings.seed, 2, number])
    orders = [rng.permutation(settings.rows) for _ in range(settings.passes)]
    return np.concatenate(orders).reshape(settings.passes * settings.minibatches, -1)


@functools.cache
def _dispatch_of(
    config: LanguageConfig,
    low: float,
    high: float,
    normalizer: str,
    length: int,
    optimizer: AdamW,
):
    """The compiled dispatch of a rollout's steps, and its optimiser."""
    loss = policy_loss(
        language.apply_fn(config),
        language.head_fn(config),
        low=low,
        high=high,
        normalizer=normalizer,
        length=length if normalizer == "constant" else None,
    )
    transformation = optimizer.build()
    step = make_step(distillation.mean_gradient(loss), transformation)
    name = f"policy/{config.num_layers}x{config.hidden_size}"

    def count(stacked: PolicyBatch) -> None:
        TRACES[name, shape_of(stacked.sequences)] += 1

    return make_dispatch(step, on_trace=count), transformation
