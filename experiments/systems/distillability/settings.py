"""The settings of the study of calibrated teachers and their students."""

import dataclasses
from collections.abc import Sequence

from experiments.systems.distillability.rivals import RIVALS
from experiments.world.small import REWARDS, WORLDS, World
from protojax import validate
from protojax.distillability import ATTACKERS
from protojax.pipelines.distillability import StudentSettings
from protojax.rl import Calibration

STUDENTS = ("student", "large", "proxy_sized", "teacher_sized", "stranger")
# By which the tokens of students "stranger" are turned, see `Tokens`.
TURNED = 5
SIZES = ("teacher_size", "proxy_size", "student_size", "large_size")
# Other arms of a study have the same models.
ARMS = ("seeds", "etas", "rewards", "students", "attackers", "rivals")


@dataclasses.dataclass(frozen=True)
class Knob:
    """A study of calibrated teachers and their students.

    Attributes:
        seeds: of calibrations and of students.
        etas: of the calibrations; the uncalibrated teacher is always there.
        rewards: what the task reward looks at, names in `REWARDS`.
        students: names in `STUDENTS`.
        attackers: names in `distillability.ATTACKERS`; "none" is no teacher.
        shift: by which the proxy's tokens are turned, see `Tokens`.
        teacher_steps: of the teacher's own training.
        base_steps: of that of proxy and students, before any distillation.
        batch_size: texts of a step of these.
        learning_rate: of these.
        problems: whose prompts calibrations and students use.
        held_out: problems on which all is measured.
        calibration: of the teachers, except for η and seed.
        training: of the students, except for the seed.
        rivals: of calibration, names in `rivals.RIVALS`.
        world: a name in `WORLDS`.
        terms: the size of its problems: numbers of a sum, or the most words of a brief.
        styles: of texts; the first is the one that small models write best.
        base_styles: of the texts that proxy and students learned from before any
            distillation; none for the teacher's. One that is named twice is twice as
            frequent.
        teacher_size: layers and width; also those of students "teacher_sized".
        proxy_size: also that of students "proxy_sized".
        student_size: of students "student", and of students "stranger", which have
            another tokenizer and learn in the ways that allow it.
        large_size: of students "large".
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    etas: tuple[float, ...] = (-1.0, 0.0, 1.0)
    rewards: tuple[str, ...] = ("answer", "chain")
    students: tuple[str, ...] = ("student", "large")
    attackers: tuple[str, ...] = ("none", "sft", "forward_kl", "gkd", "answers_only")
    shift: int = 0
    teacher_steps: int = 2500
    base_steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    problems: int = 4096
    held_out: int = 500
    calibration: Calibration = dataclasses.field(
        default_factory=lambda: Calibration(
            warmup=0.13,
            max_new=11,
            kl_target=4.0,
            kl_budget=20.0,
            skill_loss=0.2,
            evaluate_every=50,
            held_out=0.05,
        )
    )
    training: StudentSettings = dataclasses.field(
        default_factory=lambda: StudentSettings(
            learning_rate=1e-3,
            max_length=9,
            max_new=11,
        )
    )
    rivals: tuple[str, ...] = (*RIVALS,)
    world: str = "sums"
    terms: int = 3
    styles: tuple[str, ...] = ("c", "o", "p")
    base_styles: tuple[str, ...] = ()
    teacher_size: tuple[int, ...] = (3, 96)
    proxy_size: tuple[int, ...] = (2, 32)
    student_size: tuple[int, ...] = (2, 48)
    large_size: tuple[int, ...] = (3, 72)

    def __post_init__(self):
        for name in (*ARMS, "styles", "base_styles", *SIZES):
            validate.tuples(self, name)
        for name in self.rewards:
            validate.one_of(REWARDS, rewards=name)
        for name in self.students:
            validate.one_of(STUDENTS, students=name)
        for name in self.attackers:
            validate.one_of(["none", *ATTACKERS], attackers=name)
        for name in self.rivals:
            validate.one_of(RIVALS, rivals=name)
        for name in ("teacher_steps", "base_steps", "batch_size", "problems"):
            validate.positive(**{name: getattr(self, name)})
        validate.positive(held_out=self.held_out, learning_rate=self.learning_rate)
        for name in SIZES:
            size = getattr(self, name)
            fits = len(size) == 2 and min(size) > 0 and size[1] % 8 == 0
            bound = "layers and width, a multiple of 8"
            validate.require(fits, name, size, bound)
        validate.one_of(WORLDS, world=self.world)
        world = self.problem_world
        for styles in (self.styles, self.first_styles):
            world.require_styles(styles)
        most = world.count - self.held_out
        bound = f"<= {most}, as there are no others"
        validate.require(self.problems <= most, "problems", self.problems, bound)
        for name, least, found in (
            ("training.max_length", world.prompt_tokens, self.training.max_length),
            ("training.max_new", world.text_tokens, self.training.max_new),
            ("calibration.max_new", world.text_tokens, self.calibration.max_new),
        ):
            bound = f">= {least}, the tokens of a prompt or a text"
            validate.require(found >= least, name, found, bound)

    @property
    def problem_world(self) -> World:
        """The world, with problems of this size."""
        return WORLDS[self.world](self.terms)

    @property
    def first_styles(self) -> tuple[str, ...]:
        """The styles of proxy and students before any distillation."""
        return self.base_styles or self.styles

    def size_of(self, student: str) -> tuple[int, int]:
        """Layers and width of a student.

        Args:
            student: a name in `STUDENTS`.
        """
        sizes = {
            "large": self.large_size,
            "proxy_sized": self.proxy_size,
            "teacher_sized": self.teacher_size,
        }
        return sizes.get(student, self.student_size)

    def ways_of(self, student: str, attackers: Sequence[str]) -> list[str]:
        """The ways to learn that a student's tokenizer allows.

        Args:
            student: a name in `STUDENTS`.
            attackers: in `distillability.ATTACKERS`, or "none".
        """
        same = {name for name, found in ATTACKERS.items() if found.same_tokens}
        left_out = same if student == "stranger" else ()
        return [name for name in attackers if name not in left_out]
