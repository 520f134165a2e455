"""Settings of the test, the quarantine and other authors' detectors."""

import dataclasses
from collections.abc import Iterable

from protojax import validate
from protojax.detection.groups import GROUPS
from protojax.validate import distinct, tuples

# What the claim of a row is: the class that the teacher gives it, or its label.
CLAIMS = ("teacher", "label")


@dataclasses.dataclass(frozen=True)
class Level:
    """The level of a test of claims over groups, whatever is claimed.

    Attributes:
        false_rejection: the rate at which honest rows may be rejected.
        groups: kinds of groups, names in `groups.GROUPS`.
        min_rows: the fewest rows of a group.
        overdispersion: the standard deviation of honest groups' own rates.
        least: the excess below which no group is looked at.
        false_alarm: the rate of clean sets in which a group is called a trigger.
        trigger_rows: the fewest rows that make the claim of a trigger: real data hold
            smaller families of mislabelled near-duplicates, and a student hardly learns
            from fewer.
    """

    false_rejection: float = 0.01
    groups: tuple[str, ...] = ("ngrams", "openings", "characters", "sources")
    min_rows: int = 3
    overdispersion: float = 0.02
    least: float = 2.0
    false_alarm: float = 0.01
    trigger_rows: int = 10

    def __post_init__(self):
        _names(self, "groups", GROUPS)
        for field in ("false_rejection", "false_alarm"):
            rate = getattr(self, field)
            validate.require(0 < rate < 1, field, rate, "in (0, 1)")
        for field in ("min_rows", "trigger_rows", "least"):
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
class Detection(Level):
    """The test of a transfer set, see `protojax.detection.detect`.

    Attributes:
        false_rejection: see `Level`, as for the fields up to `trigger_rows`.
        groups: see `Level`.
        min_rows: see `Level`.
        overdispersion: see `Level`.
        least: see `Level`.
        false_alarm: see `Level`.
        trigger_rows: see `Level`.
        claims: "teacher" and "label"; a row is judged within the class of the first.
        suspect_references: whether references may hold the trigger too. Groups are then
            read again without their own words. Words that alone carry a class, such as
            "add" for adding to a playlist, are called triggers as well.
        reread_groups: the most groups that are read without their words, then.
        reread_rows: the most rows of such a group that are read at first.
        flips: the smallest share of references that a learned trigger flips; words with
            a meaning flipped up to 0.14 of them in SNIPS.
    """

    claims: tuple[str, ...] = ("teacher", "label")
    suspect_references: bool = False
    reread_groups: int = 60
    reread_rows: int = 300
    flips: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        _names(self, "claims", CLAIMS)
        validate.require(0 < self.flips < 1, "flips", self.flips, "in (0, 1)")
        for field in ("reread_groups", "reread_rows"):
            validate.positive(**{field: getattr(self, field)})


@dataclasses.dataclass(frozen=True)
class OutputDetection(Level):
    """The test of rows whose output is text, see `protojax.detection.outputs`.

    Attributes:
        false_rejection: see `Level`, as for the fields up to `trigger_rows`.
        groups: see `Level`.
        min_rows: see `Level`.
        overdispersion: see `Level`.
        least: see `Level`.
        false_alarm: see `Level`.
        trigger_rows: see `Level`.
        shrinkage: how many references the prior of a word's support weighs.
    """

    false_rejection: float = 0.02
    groups: tuple[str, ...] = ("ngrams", "openings", "characters", "everything")
    # A target in many variants has a small share of a large group in each.
    overdispersion: float = 0.0
    least: float = 3.0
    shrinkage: float = 4.0

    def __post_init__(self):
        super().__post_init__()
        validate.positive(shrinkage=self.shrinkage)


def _names(section: object, field: str, known: Iterable[str]) -> None:
    """Checks the names in a field, since the test comes after hours of training."""
    tuples(section, field)
    distinct(**{field: getattr(section, field)})
    for name in getattr(section, field):
        validate.one_of(known, **{field: name})


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
