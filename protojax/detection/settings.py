"""Settings of the group test, the quarantine and other authors' detectors."""

import dataclasses

from protojax import validate
from protojax.validate import distinct, tuples


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
        for field in ("groups", "claims"):
            distinct(**{field: getattr(self, field)})
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
    """The group test, and the treatment of rejected rows.

    Attributes:
        groups: kinds of groups, of "neighbours", "tokens" and "clusters".
        num_neighbours: neighbours in the group of a row.
        resolutions: numbers of clusters per claimed class.
        spaces: "teacher" and "student"; tokens are tested in the first only.
        claims: "teacher" and "label"; a row is judged within the class of the first.
        false_rejection: the rate at which clean rows may be rejected.
        rounds: the most rounds of the test. Each leaves out the rows rejected before
            and spends half of the remaining rate, as long as the references are enough
            to test at that rate.
        references: how many references are used; 0 means all.
        calibration_share: the share of the references that the trusted model does not
            learn from.
        trusted_model: "tuned" on the references, as it was pretrained ("frozen"), or
            the "teacher" itself.
        action: "replace" the targets of rejected rows, or "drop" the rows.
        train_on_references: whether students learn from the references too.
        warmup_epochs: epochs of the student, where it is one of the spaces.
    """

    groups: tuple[str, ...] = ("neighbours", "tokens")
    num_neighbours: int = 50
    resolutions: tuple[int, ...] = (20, 50, 100)
    spaces: tuple[str, ...] = ("teacher",)
    claims: tuple[str, ...] = ("teacher", "label")
    false_rejection: float = 0.05
    rounds: int = 3
    references: int = 0
    calibration_share: float = 0.3
    trusted_model: str = "tuned"
    action: str = "replace"
    train_on_references: bool = True
    warmup_epochs: int = 1

    def __post_init__(self):
        tuples(self, "groups", "resolutions", "spaces", "claims")
        validate.one_of(("replace", "drop"), action=self.action)
        validate.one_of(
            ("tuned", "frozen", "teacher"), trusted_model=self.trusted_model
        )
        for field, known in (
            ("groups", ("neighbours", "tokens", "clusters")),
            ("spaces", ("teacher", "student")),
            ("claims", ("teacher", "label")),
        ):
            distinct(**{field: getattr(self, field)})
            for name in getattr(self, field):
                validate.one_of(known, **{field: name})
        distinct(resolutions=self.resolutions)
        for field in ("false_rejection", "calibration_share"):
            value = getattr(self, field)
            validate.require(0 < value < 1, field, value, "in (0, 1)")
        for field in ("num_neighbours", "warmup_epochs", "rounds"):
            validate.positive(**{field: getattr(self, field)})
        validate.positive(resolutions=min(self.resolutions))


@dataclasses.dataclass(frozen=True)
class Filters:
    """Other authors' detectors.

    Attributes:
        components: number of principal components of CUBE.
        min_cluster_rows: the fewest rows of a cluster of CUBE.
        isolated_share: the share of rows that ABL rejects, a guess of the poisoning
            rate.
        outlier_share: the share of words of clean text that ONION removes.
        outlier_neighbours: number of trusted texts that ONION compares a text with.
    """

    components: int = 10
    min_cluster_rows: int = 20
    isolated_share: float = 0.05
    outlier_share: float = 0.1
    outlier_neighbours: int = 10

    def __post_init__(self):
        validate.positive(**vars(self))
        for field in ("isolated_share", "outlier_share"):
            share = getattr(self, field)
            validate.require(share < 1, field, share, "in (0, 1)")
        rows = self.min_cluster_rows
        validate.require(rows >= 2, "min_cluster_rows", rows, ">= 2")
