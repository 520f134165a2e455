"""Settings of one's own run: `Privatise`."""

import dataclasses

from protojax import validate
from protojax.pipelines.privacy.recipes import named, parsed
from protojax.pipelines.privacy.settings import Recipe
from protojax.pipelines.settings import Columns, PublicWriter
from protojax.privacy.overlap import OVERLAPS
from protojax.training.predict import Lengths


@dataclasses.dataclass(frozen=True)
class Privatise:
    """Everything that `pipelines.privatise` can be told.

    Attributes:
        columns: of the user's files; `source` names whose a private row is, where rows
            of one person are members together in the measurement.
        recipe: a name in `RECIPES`, or NAME:EPOCHS with other epochs of the teacher.
        base: what the recipe is made from: models, their training, noise. Models from
            scratch that are left at the rate of pretrained ones get 3e-3.
        early_stopping: the most epochs that the teacher's number of epochs is chosen
            from, on public rows with labels alone; 0 for the number of the recipe.
        writer: of texts that the student learns on in place of the public rows.
        overlap: what happens to public rows, and to texts that were written, that hold
            something of a private row: "error" stops the run, "drop" leaves them out.
        pipelines: that measure what the recipe gives away, even; 0 for no measurement.
        canaries: share of the rows of the measurement that get a wrong label, so that
            the worst case is seen. The shipped model learns from none of them.
        lengths: how rows are padded, all to the maximum.
        vocab_size: of the tokenizer of a model from scratch.
        seed: of the order of rows, of fresh weights and of the halves.
        at_once: pipelines that a device computes together; 1 is best for a CPU.
    """

    columns: Columns = dataclasses.field(default_factory=Columns)
    recipe: str = "student_hard"
    base: Recipe = dataclasses.field(default_factory=Recipe)
    early_stopping: int = 0
    writer: PublicWriter = PublicWriter()
    overlap: str = "error"
    pipelines: int = 16
    canaries: float = 0.1
    lengths: Lengths = dataclasses.field(
        default_factory=lambda: Lengths(max_length=64, buckets=(64,))
    )
    vocab_size: int = 4000
    seed: int = 0
    at_once: int = 1

    def __post_init__(self):
        _, epochs = parsed(recipe=self.recipe)
        validate.one_of(OVERLAPS, overlap=self.overlap)
        validate.non_negative(seed=self.seed, early_stopping=self.early_stopping)
        bound = f"0 with {self.recipe}, which has its epochs"
        fits = epochs is None or not self.early_stopping
        validate.require(fits, "early_stopping", self.early_stopping, bound)
        validate.positive(vocab_size=self.vocab_size, at_once=self.at_once)
        fits = self.pipelines == 0 or (self.pipelines >= 6 and self.pipelines % 2 == 0)
        bound = "0, or even and >= 6"
        validate.require(fits, "pipelines", self.pipelines, bound)
        bound = "in (0, 0.5]"
        validate.require(0 < self.canaries <= 0.5, "canaries", self.canaries, bound)
        written = self.chosen.transfer == "written"
        bound = f"a language model for {self.recipe}"
        some = bool(self.writer.model) or not written
        validate.require(some, "writer.model", self.writer.model, bound)
        bound = "'' where texts are written, which have no second text"
        one = not (written and self.columns.pair)
        validate.require(one, "columns.pair", self.columns.pair, bound)
        mark = self.columns.reference
        validate.require(not mark, "columns.reference", mark, "''")
        recipe, group = self.chosen, self.columns.source
        promised = recipe.teacher_noise.used or recipe.vote_noise
        bound = "'' with a recipe whose epsilon is of single rows"
        fits = not (group and promised)
        validate.require(fits, "columns.source", group, bound)

    @property
    def chosen(self) -> Recipe:
        """The recipe that is run, before a number of epochs is chosen."""
        recipe = named(self.recipe, self.base)
        if self.writer.model and recipe.transfer == "public":
            return dataclasses.replace(recipe, transfer="written")
        return recipe

    @property
    def stops_unseen(self) -> bool:
        """Whether the teacher stops early at a number of epochs that nothing checks."""
        _, epochs = parsed(recipe=self.recipe)
        early = self.chosen.teacher.epochs < self.base.teacher.epochs
        return early and epochs is None and not self.early_stopping
