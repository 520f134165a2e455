"""The interface of small worlds: problems, and right texts in several styles."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from protojax import validate
from protojax.base import Texts
from protojax.models import wrap_tokenizer
from protojax.models.language import LanguageConfig
from protojax.rl import Problems, VerifierFn

# What a reward looks at.
REWARDS = ("answer", "chain")


class Tokens(NamedTuple):
    """The tokens of a world.

    Attributes:
        signs: all of them, padding and the end of a text first.
        pattern: a regular expression of one token; what it leaves out separates them.
        separator: what stands between two tokens of a text.
    """

    signs: tuple[str, ...]
    pattern: str = "."
    separator: str = ""

    def tokenizer(self, shift: int = 0) -> Any:
        """The tokenizer.

        Args:
            shift: by which the ids of all tokens but padding and end are turned, so
                that two tokenizers have nothing but the texts in common.
        """
        (pad, end, *signs), size = self.signs, len(self.signs) - 2
        turned = [signs[(place - shift) % size] for place in range(size)]
        vocab = {sign: number for number, sign in enumerate([pad, end, *turned])}
        made = Tokenizer(WordLevel(vocab, unk_token=pad))
        made.pre_tokenizer = Split(Regex(self.pattern), "removed", invert=True)
        if not self.separator:
            made.decoder = decoders.Fuse()
        return wrap_tokenizer(made, max_length=64, pad_token=pad, eos_token=end)


class World(NamedTuple):
    """Problems, and right texts for each of them in several styles.

    What a problem is, is known to the functions of its world only. A text tells its
    style by its first character.

    Attributes:
        name: of the world, with what tells it from others of its kind.
        styles: the first characters of texts.
        tokens: of prompts and texts.
        prompt_tokens: the most tokens of a prompt.
        text_tokens: the most of a text, the end among them.
        count: of all problems.
        problems: `(count, rng) -> problems`, different ones.
        practice: `(count, rng, asked) -> problems` for texts to learn the world from;
            who uses them leaves out those whose prompts are `asked`.
        prompt_of: problem -> prompt.
        problem_of: prompt -> problem.
        text_of: `(style, problem) -> text`, the right one, without its end.
        answer_of: text of any style -> the answer in it, "" where it has none.
        answer_sign: what stands before an answer without the steps that lead to it.
    """

    name: str
    styles: tuple[str, ...]
    tokens: Tokens
    prompt_tokens: int
    text_tokens: int
    count: int
    problems: Callable[[int, np.random.Generator], Sequence[Any]]
    practice: Callable[[int, np.random.Generator, frozenset[str]], Sequence[Any]]
    prompt_of: Callable[[Any], str]
    problem_of: Callable[[str], Any]
    text_of: Callable[[str, Any], str]
    answer_of: Callable[[str], str]
    answer_sign: str = ""

    def right_answer(self, prompt: str, text: str, answer: str) -> float:
        """The reward of an answer: 1 if the text has it, however it came to it.

        Args:
            prompt: not read.
            text: of any style.
            answer: the right one.
        """
        del prompt
        return float(self.answer_of(text) == answer)

    def right_chain(self, prompt: str, text: str, answer: str) -> float:
        """The reward of a text that is right as a whole: 1 if it is that of its style.

        Args:
            prompt: of a problem.
            text: of any style.
            answer: not read.
        """
        del answer
        style = text[:1]
        known = style in self.styles
        return float(known and text == self.text_of(style, self.problem_of(prompt)))

    @property
    def rewards(self) -> dict[str, VerifierFn]:
        """The verifiers by what they look at."""
        return dict(zip(REWARDS, (self.right_answer, self.right_chain), strict=True))

    def answer_alone(self, text: str) -> str:
        """The text without its steps; of one without an answer nothing but the sign.

        Args:
            text: of any style.
        """
        return self.answer_sign + self.answer_of(text)

    def asked(self, problems: Sequence[Any]) -> Problems:
        """The problems as prompts with the right answers.

        Args:
            problems: `[rows]`.
        """
        texts = [self.text_of(self.styles[0], problem) for problem in problems]
        return Problems([*map(self.prompt_of, problems)], [*map(self.answer_of, texts)])

    def mixture(
        self,
        problems: Sequence[Any],
        rng: np.random.Generator,
        styles: Sequence[str] = (),
    ) -> Texts:
        """Prompts with right texts, each in a style drawn with equal probability.

        Args:
            problems: `[rows]`.
            rng: of the styles.
            styles: to draw from, one that is there twice twice as often; none for all.
        """
        chosen = rng.choice(styles or self.styles, len(problems)).tolist()
        texts = [*map(self.text_of, chosen, problems)]
        return Texts([*map(self.prompt_of, problems)], texts)

    def require_styles(self, styles: Sequence[str]) -> None:
        """Checks names of styles.

        Args:
            styles: first characters of texts.

        Raises:
            ValueError: none, or an unknown one.
        """
        validate.positive(styles=len(styles))
        for style in styles:
            validate.one_of(self.styles, styles=style)

    def body(self, layers: int, width: int) -> LanguageConfig:
        """A decoder of the family Llama for this world.

        Args:
            layers: how many.
            width: of the residual stream, a multiple of 8.
        """
        return LanguageConfig(
            family="llama",
            vocab_size=len(self.tokens.signs),
            hidden_size=width,
            num_layers=layers,
            num_heads=4,
            num_kv_heads=4,
            head_dim=width // 4,
            # As in Llama, 8/3 of the width.
            intermediate_size=8 * round(width / 3),
            positions="rotary",
            pad_id=0,
            end_ids=(1,),
        )
