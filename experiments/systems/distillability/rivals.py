"""Rivals of calibration: what else makes a teacher harder or easier to distil."""

from collections.abc import Callable
from typing import NamedTuple

from experiments.world.small import World
from protojax.models.language import LanguageModel, select_layers
from protojax.pipelines.distillability import Experts


class Offer(NamedTuple):
    """A teacher as students may ask it; see `Query` for the fields.

    Attributes:
        model: the teacher.
        experts: a proxy that it writes together with, or None.
        shown: what of a text is given away, None for all.
    """

    model: LanguageModel
    experts: Experts | None = None
    shown: Callable[[str], str] | None = None


class Rival(NamedTuple):
    """Something other than calibration that is done to a teacher, or by its students.

    Attributes:
        line: what it is, in a sentence.
        attackers: students that it is tried on, names in `ATTACKERS`.
        offer_of: `(teacher, proxy, world) -> Offer`, or None where the teacher stays as
            it is.
        same_tokens: whether the proxy needs the teacher's tokens.
    """

    line: str
    attackers: tuple[str, ...]
    offer_of: Callable[[LanguageModel, LanguageModel, World], Offer] | None = None
    same_tokens: bool = False


def _experts(gamma: float) -> Rival:
    """A product of experts."""
    return Rival(
        f"Writes together with the proxy, whose share is {gamma:g}.",
        ("sft", "gkd"),
        lambda teacher, proxy, _: Offer(teacher, Experts(proxy, gamma)),
        same_tokens=True,
    )


RIVALS: dict[str, Rival] = {
    "experts 0.3": _experts(0.3),
    "experts 0.6": _experts(0.6),
    "no chain": Rival(
        "Gives away the answer alone.",
        ("sft",),
        lambda teacher, _, world: Offer(teacher, shown=world.answer_alone),
    ),
    "early layers": Rival(
        "Answers from all layers but the last.",
        ("sft", "gkd"),
        lambda teacher, *_: Offer(
            select_layers(teacher, range(max(1, teacher.config.num_layers - 1)))
        ),
    ),
    "best of n": Rival(
        "The original's texts, of several the one that the student finds likeliest.",
        ("likeliest_of_n",),
    ),
}
