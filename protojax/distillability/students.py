"""The students that a teacher may meet: `ATTACKERS`, each with what it uses and pays.

A passive student learns from what it is given as it is. An adaptive one knows that a
teacher may have been made hard to distil, and chooses what it learns from. A claim
about a teacher names the students that it was tried on, their interface and budget;
what counts is the best of them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from protojax import validate
from protojax.distillability import selection
from protojax.distillability.selection import SelectFn

# What a teacher may give away: texts that it writes, log probabilities of tokens of any
# text, its answers alone, texts that go on behind a beginning of the caller's.
INTERFACES = ("text", "log_probs", "answers", "prefix")
SOURCES = ("given", "own", "mixed")
LOSSES = ("sequence", "long_horizon", "across")


class Phase(NamedTuple):
    """A part of a student's training.

    Attributes:
        source: where its texts come from: "given" (what was selected), "own" (the
            student writes them as it learns), "mixed" (some of each).
        loss: "sequence", see `distillation.sequence_loss`, "long_horizon", or "across",
            see `across_loss`.
        options: of the loss.
        gated: whether tokens are weighted by `token_gate`.
    """

    source: str
    loss: str
    options: Mapping[str, Any]
    gated: bool = False


class Attacker(NamedTuple):
    """One kind of student.

    Attributes:
        line: what it does, in a sentence.
        interface: what it needs of the teacher, names in `INTERFACES`.
        adaptive: whether it chooses what it learns from.
        select: what it learns from, or None where it writes all texts itself.
        phases: of its training, in their order.
        needs: fields of `Held` besides the prompts that `select` reads.
        draws: whether more than one text of the teacher for a prompt helps it.
        greedy: whether it asks for the teacher's most probable text, not a drawn one.
    """

    line: str
    interface: tuple[str, ...]
    adaptive: bool
    select: SelectFn | None
    phases: tuple[Phase, ...]
    needs: tuple[str, ...] = ()
    draws: bool = False
    greedy: bool = False

    @property
    def on_policy(self) -> bool:
        """Whether it writes texts as it learns."""
        return any(phase.source != "given" for phase in self.phases)

    @property
    def same_tokens(self) -> bool:
        """Whether the student needs the teacher's tokenizer."""
        across = any(phase.loss == "across" for phase in self.phases)
        return "log_probs" in self.interface and not across


class Budget(NamedTuple):
    """The queries and tokens that a student takes from a teacher.

    Attributes:
        queries: calls of the teacher.
        tokens: that it writes, or scores, in these calls.
    """

    queries: int
    tokens: int

    def __add__(self, other: "Budget") -> "Budget":
        """Both together."""
        return Budget(self.queries + other.queries, self.tokens + other.tokens)


def _phase(source: str, divergence: str | None = None, **more: Any) -> Phase:
    """A phase that learns the text itself, or by a divergence of probabilities."""
    gated, loss = more.pop("gated", False), more.pop("loss", "sequence")
    options = {"hard_weight": 1.0, **more} if loss == "sequence" else dict(more)
    if divergence is not None:
        options = {"hard_weight": 0.0, "divergence": divergence, **more}
    return Phase(source, loss, MappingProxyType(options), gated)


_TEXT = _phase("given")
_ON_POLICY = _phase("mixed", "reverse_kl")

ATTACKERS: dict[str, Attacker] = {
    "sft": Attacker(
        "Learns texts that the teacher drew.",
        ("text",),
        False,
        selection.every_text,
        (_TEXT,),
        ("texts",),
    ),
    "seq_kd": Attacker(
        "Learns the teacher's most probable texts (Kim and Rush, 2016).",
        ("text",),
        False,
        selection.every_text,
        (_TEXT,),
        ("texts",),
        greedy=True,
    ),
    "forward_kl": Attacker(
        "Learns the teacher's probabilities along its texts.",
        ("text", "log_probs"),
        False,
        selection.every_text,
        (_phase("given", "forward_kl"),),
        ("texts",),
    ),
    "reverse_kl": Attacker(
        "The same by the divergence that seeks one manner of the teacher.",
        ("text", "log_probs"),
        False,
        selection.every_text,
        (_phase("given", "reverse_kl"),),
        ("texts",),
    ),
    "jsd": Attacker(
        "The same by the divergence between both.",
        ("text", "log_probs"),
        False,
        selection.every_text,
        (_phase("given", "jensen_shannon"),),
        ("texts",),
    ),
    "gkd": Attacker(
        "Learns the teacher's probabilities along texts of its own and of the "
        "teacher (Agarwal et al., 2023).",
        ("text", "log_probs"),
        False,
        selection.every_text,
        (_ON_POLICY,),
        ("texts",),
    ),
    "minillm": Attacker(
        "Learns on its own texts what the teacher finds of the whole rest of a text "
        "(Gu et al., 2023).",
        ("log_probs",),
        False,
        None,
        (_phase("own", loss="long_horizon"),),
    ),
    "other_tokens": Attacker(
        "Learns the teacher's probabilities where both have the same next token, and "
        "its texts elsewhere, with another tokenizer (arXiv:2402.12030).",
        ("text", "log_probs"),
        False,
        selection.every_text,
        (_phase("given", loss="across"),),
        ("texts",),
    ),
    "answers_only": Attacker(
        "Learns its own texts that end in the teacher's answer.",
        ("answers",),
        True,
        selection.answers_only,
        (_TEXT,),
        ("answers", "own", "own_answers"),
    ),
    "likeliest_of_n": Attacker(
        "Learns of several texts the one that it finds likeliest.",
        ("text",),
        True,
        selection.likeliest_of_n,
        (_TEXT,),
        ("texts", "scores"),
        draws=True,
    ),
    "tilted": Attacker(
        "Learns texts the more, the more they teach it of a few trusted ones "
        "(arXiv:2605.22737).",
        ("text",),
        True,
        selection.tilted,
        (_TEXT,),
        ("texts", "values"),
    ),
    "token_gate": Attacker(
        "Leaves out the tokens that it finds least likely.",
        ("text",),
        True,
        selection.every_text,
        (_phase("given", gated=True),),
        ("texts",),
    ),
    "prefixed": Attacker(
        "Writes the beginning itself, and learns how the teacher goes on.",
        ("text", "prefix"),
        True,
        selection.prefixed,
        (_TEXT,),
        ("texts", "prefixes"),
    ),
    "cold_start": Attacker(
        "Learns the teacher's texts first, then by its probabilities along its own "
        "(arXiv:2604.13016).",
        ("text", "log_probs"),
        True,
        selection.every_text,
        (_TEXT, _phase("own", "reverse_kl")),
        ("texts",),
    ),
    "second_proxy": Attacker(
        "Learns of several texts the one that another small model finds likeliest.",
        ("text",),
        True,
        selection.second_proxy,
        (_TEXT,),
        ("texts", "proxy_scores"),
        draws=True,
    ),
}


def budget_of(
    attacker: Attacker,
    *,
    prompts: int,
    draws: int,
    tokens: float,
    answer_tokens: float = 1,
    own_texts: int = 0,
) -> Budget:
    """The queries and tokens of a student, counted as an interface would bill them.

    Texts that are written along with their log probabilities are one call; scoring a
    text of the student's own is another.

    Args:
        attacker: the student.
        prompts: how many it has.
        draws: texts of the teacher for a prompt; 1 is used where more do not help.
        tokens: of a text, in the mean.
        answer_tokens: of an answer, in the mean.
        own_texts: that it writes as it learns and lets the teacher score.

    Raises:
        ValueError: a number that is not positive, or texts of its own of a student that
            writes none.

    >>> budget_of(ATTACKERS["likeliest_of_n"], prompts=10, draws=4, tokens=20)
    Budget(queries=40, tokens=800)
    >>> budget_of(ATTACKERS["answers_only"], prompts=10, draws=4, tokens=20)
    Budget(queries=10, tokens=10)
    """
    validate.positive(prompts=prompts, draws=draws, tokens=tokens)
    validate.non_negative(answer_tokens=answer_tokens, own_texts=own_texts)
    writes = attacker.on_policy or own_texts == 0
    validate.require(writes, "own_texts", own_texts, "0, as it writes none")
    found = Budget(own_texts, round(own_texts * tokens))
    if "answers" in attacker.needs:
        found += Budget(prompts, round(prompts * answer_tokens))
    if "texts" in attacker.needs:
        bought = prompts * (draws if attacker.draws else 1)
        found += Budget(bought, round(bought * tokens))
    return found


def claim_of(
    name: str,
    budget: Budget,
    points: float,
    *,
    interval: tuple[float, float] | None = None,
) -> str:
    """The only sentence that may be said of a teacher and one kind of student.

    Args:
        name: in `ATTACKERS`.
        budget: what the student took.
        points: percentage points that it loses against the same student of the teacher
            as it was before; below 0 for a gain.
        interval: the ends of their interval, or None where there is none. One that
            holds 0 is said to show nothing.

    Raises:
        ValueError: an unknown name, or points outside of their interval.

    >>> claim_of("sft", Budget(1000, 20000), 12.34)
    'Passive students (sft) of the interface text, at 1,000 queries and 20,000 tokens, \
lose 12.3 points.'
    >>> said = claim_of("sft", Budget(10, 100), -12.34, interval=(-15.0, -10.0))
    >>> said.partition("tokens, ")[2]
    'gain 12.3 points [10.0, 15.0].'
    """
    validate.one_of(ATTACKERS, name=name)
    attacker = ATTACKERS[name]
    kind = "Adaptive" if attacker.adaptive else "Passive"
    verb, sign = ("lose", 1) if points >= 0 else ("gain", -1)
    ends = ""
    if interval is not None:
        low, high = interval
        validate.require(low <= points <= high, "points", points, f"in {interval}")
        low, high = sorted((sign * low, sign * high))
        ends = f" [{low:.1f}, {high:.1f}]" + (", or none" if low <= 0 else "")
    return (
        f"{kind} students ({name}) of the interface {' and '.join(attacker.interface)}"
        f", at {budget.queries:,} queries and {budget.tokens:,} tokens, {verb} "
        f"{abs(points):.1f} points{ends}."
    )


def is_undistillable(upper: float, *, no_teacher: float, withheld: float) -> bool:
    """Whether the word "undistillable" may be used of a teacher.

    Only where the best attacker's upper bound is below both nulls: the student that had
    no teacher, and the best student of the unchanged teacher that withholds its steps.

    Args:
        upper: the upper end of the interval of the best attacker's accuracy.
        no_teacher: accuracy of the student without any teacher.
        withheld: accuracy of the best student of the teacher's answers alone.

    Returns:
        A bool.

    >>> is_undistillable(0.4, no_teacher=0.5, withheld=0.3)
    False

    References:
        The first null is that of arXiv:2507.00012; the second of arXiv:2603.07835,
        where withholding the steps hurts students more than other defences.
    """
    return upper < no_teacher and upper < withheld
