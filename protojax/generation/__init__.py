"""Texts that language models write: greedy, sampled, or by beam search."""

from protojax.generation.beams import beam_search
from protojax.generation.sampling import Generated, generate

__all__ = ["Generated", "beam_search", "generate"]
