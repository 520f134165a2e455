"""Settings of the group test, the quarantine and other authors' detectors."""

import dataclasses

from protojax import validate
from protojax.validate import distinct, tuples


@dataclasses.dataclass(frozen=True)
class Quarantine:
    """The group test, and what becomes of what it rejects.

    Attributes:
        groups: kinds of groups, of "neighbours", "tokens" and "clusters".
        num_neighbours: of a row.
        resolutions: clusters a claimed class.
        spaces: "teacher" and "student"; tokens are asked in the first.
        claims: "teacher" and "label"; a row is judged within the class of the first.
        false_rejection: the stated rate.
        rounds: of the test at most, each without what was rejected before, at half of
            the rate that is left, while the references can show so little.
        references: how many of them are known; 0 is all.
        calibration_share: of the references, which the trusted model does not learn.
        trusted_model: the trusted model: "tuned" on the references, as it was
            pretrained ("frozen"), or the "teacher" itself.
        action: "replace" or "drop".
        train_on_references: whether students learn from the references too.
        warmup_epochs: of the student, where it is one of the spaces.
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
        components: principal components of CUBE.
        min_cluster_rows: of CUBE.
        isolated_share: of ABL, a guess of the poison's rate.
        outlier_share: of the words of clean text, of ONION.
        outlier_neighbours: trusted texts that ONION compares a text with.
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
