"""The defence of rows whose output is text: from a user's files to a student."""

from protojax.pipelines.outputs.defence import DefendedOutputs, defend_outputs
from protojax.pipelines.outputs.settings import OutputDefence
from protojax.pipelines.outputs.students import (
    Lesson,
    fresh_student,
    objective_of,
    said_by,
    teach,
    teach_nodes,
)
from protojax.pipelines.outputs.writing import vectors_of, write

__all__ = ["DefendedOutputs", "Lesson", "OutputDefence", "defend_outputs"]
__all__ += ["fresh_student", "objective_of", "said_by", "teach", "teach_nodes"]
__all__ += ["vectors_of", "write"]
