"""The defence of rows whose output is text: from a user's files to a student."""

from protojax.pipelines.outputs.defence import DefendedOutputs, defend_outputs
from protojax.pipelines.outputs.settings import OutputDefence
from protojax.pipelines.outputs.students import (
    fresh_student,
    objective_of,
    said_by,
    teach,
)
from protojax.pipelines.outputs.writing import vectors_of, write

__all__ = ["DefendedOutputs", "OutputDefence", "defend_outputs", "objective_of"]
__all__ += ["fresh_student", "said_by", "teach", "vectors_of", "write"]
