"""The families of language models; one more is one more file and one more line here."""

from protojax.models.language._family import LanguageFamily
from protojax.models.language.bart import BART
from protojax.models.language.gpt2 import GPT2
from protojax.models.language.llama import LLAMA
from protojax.models.language.qwen import QWEN2, QWEN3
from protojax.models.language.t5 import MT5, T5

LANGUAGE_MODELS: dict[str, LanguageFamily] = {
    "bart": BART,
    "gpt2": GPT2,
    "llama": LLAMA,
    "mt5": MT5,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "t5": T5,
}
