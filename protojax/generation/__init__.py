"""Texts that language models write: greedy, sampled, or by beam search."""

from protojax.generation.alike import write_alike
from protojax.generation.beams import beam_search
from protojax.generation.sampling import Generated, generate
from protojax.generation.texts import write_texts

__all__ = ["Generated", "beam_search", "generate", "write_alike"]
__all__ += ["write_texts"]
