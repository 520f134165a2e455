"""Settings of the calibration of a user's own teacher."""

import dataclasses

from protojax import validate
from protojax.models.config import DTYPES
from protojax.rl import VERIFIERS, Calibration


@dataclasses.dataclass(frozen=True)
class ProblemColumns:
    """The columns of the user's file.

    Attributes:
        prompt: the column of the prompt.
        answer: the column of what the verifiers compare a text with.
        encoding: of a text file.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    encoding: str = "utf-8"

    def __post_init__(self):
        for field in ("prompt", "answer"):
            value = getattr(self, field)
            validate.require(value != "", field, value, "the name of a column")


@dataclasses.dataclass(frozen=True)
class TeacherCalibration:
    """Everything that `pipelines.calibration.calibrate_teacher` can be told.

    Attributes:
        columns: of the user's file.
        calibration: of the teacher.
        verifiers: names in `rl.VERIFIERS`; the task reward is their product. () leaves
            it to the function that the caller gives.
        dtype: of the computation; parameters are float32.
    """

    columns: ProblemColumns = ProblemColumns()
    calibration: Calibration = Calibration()
    verifiers: tuple[str, ...] = ("arithmetic", "equations")
    dtype: str = "float32"

    def __post_init__(self):
        validate.tuples(self, "verifiers")
        for name in self.verifiers:
            validate.one_of(VERIFIERS, verifiers=name)
        validate.one_of(DTYPES, dtype=self.dtype)
