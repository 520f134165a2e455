"""Prompts with answers, and what a policy makes of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import validate
from protojax.base import Array, PyTree
from protojax.distillability import calibration_reward
from protojax.models.language import LanguageModel, prompts_of
from protojax.rl.rewards import Proxy, proxy_log_prob, same_tokens, task_rewards
from protojax.rl.rollouts import Prompts, Rollout, read_prompts, rollout, texts_of
from protojax.rl.settings import Calibration
from protojax.rl.verifiers import VerifierFn, check_answers

_MOST_HELD_OUT = 512


class Problems(NamedTuple):
    """Prompts and the answers that verifiers compare texts with, on the host.

    Attributes:
        prompts: `[problems]`, texts.
        answers: `[problems]`, texts.
    """

    prompts: Sequence[str]
    answers: Sequence[str]


class World(NamedTuple):
    """Everything that rewards of drawn texts depend on, but the policy's parameters.

    Attributes:
        teacher: the original; its parameters are those that the policy is held to.
        proxy: the frozen proxy, with the prompts as it reads them.
        prompts: the prompts as the teacher reads them.
        problems: the problems.
        verifiers: names in `VERIFIERS`, or functions.
        settings: of the calibration.
    """

    teacher: LanguageModel
    proxy: Proxy
    prompts: Prompts
    problems: Problems
    verifiers: tuple[str | VerifierFn, ...]
    settings: Calibration


class Drawn(NamedTuple):
    """Texts that a policy drew and what is known of each, on the host.

    Attributes:
        rows: `[texts]`, int, the problem of each.
        texts: `[texts]`.
        task: `[texts]`, rewards in [0, 1].
        calibration: `[texts]`, nats a text or a byte.
        log_prob: `[texts]`, nats, under the policy, least improbable tokens included.
        reference_log_prob: `[texts]`, nats, under the original.
        proxy_log_prob: `[texts]`, nats, under the proxy.
        kl: `[texts]`, nats, from the original, see `Rollout.kl`.
        tokens: `[texts]`, int, the policy's, the stop token included.
        ended: `[texts]`, bool.
    """

    rows: np.ndarray
    texts: list[str]
    task: np.ndarray
    calibration: np.ndarray
    log_prob: np.ndarray
    reference_log_prob: np.ndarray
    proxy_log_prob: np.ndarray
    kl: np.ndarray
    tokens: np.ndarray
    ended: np.ndarray

    @property
    def solved(self) -> np.ndarray:
        """`[texts]`, bool, whether a text has the whole task reward."""
        return self.task >= 1

    def means(self) -> dict[str, float]:
        """The means over texts, by name."""
        names = ("task", "calibration", "kl", "tokens", "ended", "solved")
        return {name: float(np.mean(getattr(self, name))) for name in names}


def build_world(
    teacher: LanguageModel,
    proxy: LanguageModel,
    problems: Problems,
    settings: Calibration,
    verifiers: Sequence[str | VerifierFn],
) -> World:
    """The world of a calibration, after a check of what would fail later.

    Args:
        teacher: the model to calibrate, with its tokenizer.
        proxy: the model that stands for students, with its own tokenizer.
        problems: all of them, those to hold out among them.
        settings: of the calibration.
        verifiers: names in `VERIFIERS`, or functions `(prompt, text, answer) -> float`.

    Raises:
        ValueError: a model without a tokenizer or an end token, or with too little room
            for `max_new` tokens; too few problems; an answer no text can have.
    """
    validate.same_length(prompts=problems.prompts, answers=problems.answers)
    validate.positive(verifiers=len(verifiers))
    names = [verifier for verifier in verifiers if isinstance(verifier, str)]
    check_answers(names, problems.answers)
    training, _ = split(len(problems.prompts), settings)
    bound = f"<= {len(training)}, the problems that are not held out"
    fits = settings.prompts <= len(training)
    validate.require(fits, "prompts", settings.prompts, bound)
    read = {}
    for name, model, form in (
        ("teacher", teacher, settings.prompt),
        ("proxy", proxy, settings.proxy_prompt),
    ):
        validate.require(model.tokenizer is not None, name, None, "with a tokenizer")
        ends = model.config.end_ids
        validate.require(bool(ends), f"{name}.end_ids", ends, "a token that ends")
        texts = prompts_of(model.tokenizer, form, problems.prompts)
        read[name] = read_prompts(model, texts)
        length = settings.max_new
        if not model.config.encoder_layers:
            length += read[name].input_ids.shape[1] - 1
        most = model.config.max_positions
        bound = f"such that the {name} reads all of prompt and text, {most} tokens"
        fits = most == 0 or length <= most
        validate.require(fits, "max_new", settings.max_new, bound)
    same = same_tokens(teacher, proxy)
    held = Proxy(proxy, read["proxy"], same, settings.least)
    return World(teacher, held, read["teacher"], problems, tuple(verifiers), settings)


def split(count: int, settings: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """The problems to train on, and those that are held out.

    >>> [len(part) for part in split(100, Calibration(held_out=0.2))]
    [80, 20]

    Args:
        count: of all problems.
        settings: name the share and the seed.
    """
    order = np.random.default_rng([settings.seed, 0]).permutation(count)
    size = min(_MOST_HELD_OUT, max(1, round(settings.held_out * count)))
    return np.sort(order[size:]), np.sort(order[:size])


def rows_of(rows: np.ndarray, settings: Calibration, number: int) -> np.ndarray:
    """The problems of a rollout: in a new order each epoch, none twice in one.

    They follow from the seed and the number alone, so that a resumed run needs no
    generator's state.

    >>> settings = Calibration(prompts=2)
    >>> found = [rows_of(np.arange(5), settings, number) for number in range(2)]
    >>> len(set(np.concatenate(found).tolist()))
    4

    Args:
        rows: the problems to train on.
        settings: name the seed and the prompts of a rollout.
        number: of the rollout, from 0.
    """
    epoch, place = divmod(number, len(rows) // settings.prompts)
    order = np.random.default_rng([settings.seed, 1, epoch]).permutation(rows)
    return order[place * settings.prompts :][: settings.prompts]


def draw(
    world: World, params: PyTree, rows: np.ndarray, key: Array, *, draws: int
) -> tuple[Rollout, Drawn]:
    """Texts drawn for problems, and their rewards.

    Args:
        world: the world.
        params: the policy's.
        rows: `[problems]`, which.
        key: a PRNG key.
        draws: texts of each.

    Returns:
        The rollout on the device, and what is known of each text.
    """
    found = rollout(
        world.teacher.config,
        params,
        world.teacher.params,
        world.prompts.take(rows),
        key,
        draws=draws,
        max_new=world.settings.max_new,
    )
    return found, _judged(world, np.repeat(rows, draws), jax.device_get(found))


def _judged(world: World, rows: np.ndarray, found: Rollout) -> Drawn:
    """The rewards and lengths of each text of a rollout."""
    texts = texts_of(world.teacher.tokenizer, found)
    prompts, answers = ([column[row] for row in rows] for column in world.problems)
    task = task_rewards(world.verifiers, prompts, texts, answers, found.ended)
    own, original, kl = (np.asarray(column, np.float64).sum(1) for column in found[1:4])
    proxy = proxy_log_prob(world.proxy, rows, texts, found)
    given: dict[str, Any] = {"per": world.settings.per}
    if world.settings.per == "byte":
        given["lengths"] = np.array([len(text.encode()) for text in texts])
    return Drawn(
        rows=rows,
        texts=texts,
        task=task,
        calibration=np.asarray(calibration_reward(proxy, own, **given), np.float64),
        log_prob=own,
        reference_log_prob=original,
        proxy_log_prob=proxy,
        kl=kl,
        tokens=(found.sequences.output_weights > 0).sum(1),
        ended=np.asarray(found.ended),
    )


def evaluate(world: World, params: PyTree, rows: np.ndarray, key: Array) -> Drawn:
    """One drawn text for each of some problems, with its rewards.

    As many at a time as a rollout has texts, so that nothing is compiled again. With
    the same key two policies use the same random numbers.

    Args:
        world: the world.
        params: the policy's.
        rows: `[problems]`, which.
        key: a PRNG key.
    """
    size, parts = world.settings.rows, []
    for number, start in enumerate(range(0, len(rows), size)):
        some = rows[start : start + size]
        filled = np.concatenate([some, np.repeat(some[:1], size - len(some))])
        part = draw(world, params, filled, jax.random.fold_in(key, number), draws=1)[1]
        parts.append([column[: len(some)] for column in part])
    columns = [
        [text for part in column for text in part]
        if isinstance(column[0], list)
        else np.concatenate(column)
        for column in zip(*parts, strict=True)
    ]
    return Drawn(*columns)
