"""Settings of the test, the quarantine and other authors' detectors."""

import dataclasses

from protojax import validate
from protojax.detection.groups import GROUPS
from protojax.validate import distinct, tuples

# What the claim of a row is: the class that the teacher gives it, or its label.
CLAIMS = ("teacher", "label")


@dataclasses.dataclass(frozen=True)
class Detection:
    """The test of a transfer set, see `protojax.detection.detect`.

    Attributes:
        false_rejection: the rate at which honest rows may be rejected.
        groups: kinds of groups, names in `groups.GROUPS`.
        claims: "teacher" and "label"; a row is judged within the class of the first.
        min_rows: the fewest rows of a group.
        overdispersion: the standard deviation of honest groups' own rates.
        least: the excess below which no group is looked at.
        false_alarm: the rate of clean sets in which a group is called a trigger.
        trigger_rows: the fewest rows that make the claim of a trigger: real data hold
            smaller families of mislabelled near-duplicates, and a student hardly learns
            from fewer.
        suspect_references: whether references may hold the trigger too. Groups are then
            read again without their own words. Words that alone carry a class, such as
            "add" for adding to a playlist, are called triggers as well.
        reread_groups: the most groups that are read without their words, then.
        reread_rows: the most rows of such a group that are read at first.
        flips: the smallest share of references that a learned trigger flips; words with
            a meaning flipped up to 0.14 of them in SNIPS.
    """

    false_rejection: float = 0.01
    groups: tuple[str, ...] = ("ngrams", "openings", "characters", "sources")
    claims: tuple[str, ...] = ("teacher", "label")
    min_rows: int = 3
    overdispersion: float = 0.02
    least: float = 2.0
    false_alarm: float = 0.01
    trigger_rows: int = 10
    suspect_references: bool = False
    reread_groups: int = 60
    reread_rows: int = 300
    flips: float = 0.3

    def __post_init__(self):
        tuples(self, "groups", "claims")
        # The test comes after hours of training: its names are checked here.
        for field, known in (("groups", GROUPS), ("claims", CLAIMS)):
            distinct(**{field: getattr(self, field)})
            for name in getattr(self, field):
                validate.one_of(known, **{field: name})
        for field in ("false_rejection", "false_alarm", "flips"):
            rate = getattr(self, field)
            validate.require(0 < rate < 1, field, rate, "in (0, 1)")
        for field in (
            "min_rows",
            "trigger_rows",
            "reread_groups",
            "reread_rows",
            "least",
        ):
            validate.positive(**{field: getattr(self, field)})
        validate.non_negative(overdispersion=self.overdispersion)

    def is_trigger(self, p_value: float, claimants: int) -> bool:
        """Whether a group is called a trigger.

        Args:
            p_value: the chance that the strongest honest group is as strong.
            claimants: how many rows make its claim.
        """
        return bool(p_value <= self.false_alarm and claimants >= self.trigger_rows)


@dataclasses.dataclass(frozen=True)
class Quarantine:
    """The treatment of rejected rows, and the part of the references.

    Attributes:
        action: "replace" the targets of rejected rows, or "drop" the rows.
        references: how many references are used; 0 means all.
        train_on_references: whether students learn from the references too.
    """

    action: str = "replace"
    references: int = 0
    train_on_references: bool = True

    def __post_init__(self):
        validate.one_of(("replace", "drop"), action=self.action)
        validate.non_negative(references=self.references)


@dataclasses.dataclass(frozen=True)
class Filters:
    """Other authors' detectors.

    Attributes:
        components: number of principal components of CUBE.
        min_cluster_rows: the fewest rows of a cluster of CUBE.
        isolated_share: the share of rows that ABL rejects, a guess of the poisoning
            rate.
        warmup_epochs: epochs of the student whose losses ABL compares.
        outlier_share: the share of words of clean text that ONION removes.
        outlier_neighbours: number of trusted texts that ONION compares a text with.
    """

    components: int = 10
    min_cluster_rows: int = 20
    isolated_share: float = 0.05
    warmup_epochs: int = 1
    outlier_share: float = 0.1
    outlier_neighbours: int = 10

    def __post_init__(self):
        validate.positive(**vars(self))
        for field in ("isolated_share", "outlier_share"):
            share = getattr(self, field)
            validate.require(share < 1, field, share, "in (0, 1)")
        rows = self.min_cluster_rows
        validate.require(rows >= 2, "min_cluster_rows", rows, ">= 2")
