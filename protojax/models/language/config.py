"""The configuration of a language model that writes."""

import dataclasses

from protojax import validate
from protojax.models.config import ACTIVATIONS, DTYPES

POSITIONS = ("learned", "relative", "rotary")
NORMS = ("layer", "rms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """The change of rotary frequencies that lets Llama 3.1 read longer texts.

    Wavelengths above `original_positions / low` are multiplied by `factor`, those below
    `original_positions / high` stay, and between the two the frequencies are
    interpolated (rope_type "llama3" of config.json).

    Attributes:
        factor: by which long wavelengths grow.
        low: low_freq_factor.
        high: high_freq_factor.
        original_positions: tokens of a row in pre-training.
    """

    factor: float
    low: float
    high: float
    original_positions: int

    def __post_init__(self):
        validate.positive(**dataclasses.asdict(self))
        validate.require(self.high > self.low, "high", self.high, f"> low={self.low}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The settings that determine a language model's computation. Hashable.

    >>> config = LanguageConfig(family="llama", vocab_size=100, hidden_size=32,
    ...     num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    ...     intermediate_size=64, positions="rotary")
    >>> dataclasses.replace(config, num_kv_heads=3)
    Traceback (most recent call last):
    ValueError: Expected num_kv_heads a divisor of num_heads=4, found num_kv_heads=3.

    Attributes:
        family: a name in `LANGUAGE_MODELS`.
        vocab_size: rows of the word embedding.
        hidden_size: width of the residual stream.
        num_layers: layers of the decoder.
        encoder_layers: layers of the encoder; 0 for a model that is a decoder only.
        num_heads: attention heads.
        num_kv_heads: heads of keys and values, each shared by
            `num_heads / num_kv_heads` heads of queries.
        head_dim: width of a head.
        intermediate_size: width inside the perceptron.
        positions: "rotary" (queries and keys are rotated), "learned" (an embedding) or
            "relative" (a bias on the scores of attention).
        max_positions: the most tokens of a row, output included; 0 for no limit.
        position_offset: rows of the learned positions before the first one, 2 in BART.
        rope_theta: base of the wavelengths of rotary positions.
        rope_scaling: see `RopeScaling`, or None.
        relative_buckets: buckets of distances.
        relative_distance: distance from which all share a bucket.
        norm: "rms" or "layer".
        norm_eps: added to the mean square or the variance.
        pre_norm: whether parts of a layer normalise what they read, and the last
            layer's output is normalised; else each sum is normalised.
        activation: of the perceptron, a key of `ACTIVATIONS`.
        gated: whether the perceptron multiplies its activations with a second linear
            layer's output.
        attention_bias: whether query, key and value have biases.
        output_bias: whether attention's output has one.
        mlp_bias: whether the perceptron's layers have them.
        query_key_norm: whether each head's queries and keys are normalised, as in
            Qwen3.
        float32_down: whether the perceptron's last product, and the residual stream,
            are float32 in a bfloat16 body, as T5 needs.
        scale_attention: whether scores are divided by √head_dim.
        embedding_scale: the word embedding is multiplied by it.
        embedding_norm: whether embeddings are normalised, as in BART.
        tied: whether the head is the word embedding.
        scale_head: whether the head's input is divided by √hidden_size, as in T5 1.0.
        head_bias: whether the head has a bias, as in BART.
        start_id: the token that an encoder-decoder's output begins behind.
        pad_id: the padding token.
        end_ids: tokens that end an output.
        dropout: rate on embeddings, attention weights and what each layer adds.
        dtype: "float32" or "bfloat16", what the body computes in.
        remat: recompute each layer in the backward pass to save memory.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    encoder_layers: int = 0
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    positions: str
    max_positions: int = 0
    position_offset: int = 0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    relative_buckets: int = 32
    relative_distance: int = 128
    norm: str = "rms"
    norm_eps: float = 1e-6
    pre_norm: bool = True
    activation: str = "silu"
    gated: bool = True
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    float32_down: bool = False
    scale_attention: bool = True
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    tied: bool = True
    scale_head: bool = False
    head_bias: bool = False
    start_id: int = 0
    pad_id: int = 0
    end_ids: tuple[int, ...] = ()
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        validate.tuples(self, "end_ids")
        validate.positive(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps,
            embedding_scale=self.embedding_scale,
        )
        validate.non_negative(
            encoder_layers=self.encoder_layers,
            max_positions=self.max_positions,
            position_offset=self.position_offset,
        )
        validate.fraction(dropout=self.dropout)
        validate.one_of(POSITIONS, positions=self.positions)
        validate.one_of(NORMS, norm=self.norm)
        validate.one_of(ACTIVATIONS, activation=self.activation)
        validate.one_of(DTYPES, dtype=self.dtype)
        self._check_attention()
        for name in ("start_id", "pad_id"):
            self._check_token(name, getattr(self, name))
        for token in self.end_ids:
            self._check_token("end_ids", token)

    def _check_attention(self):
        validate.require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"a divisor of num_heads={self.num_heads}",
        )
        if self.positions == "rotary":
            validate.require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even")
        if self.positions == "learned":
            validate.positive(max_positions=self.max_positions)
        if self.positions == "relative":
            buckets = self.relative_buckets
            validate.require(
                buckets >= 4 and buckets % 2 == 0,
                "relative_buckets",
                buckets,
                "even and >= 4",
            )
            validate.require(
                self.relative_distance > buckets // 2,
                "relative_distance",
                self.relative_distance,
                f"> {buckets // 2}, half of relative_buckets",
            )

    def _check_token(self, name: str, token: int):
        validate.require(
            0 <= token < self.vocab_size,
            name,
            token,
            f"in [0, vocab_size={self.vocab_size})",
        )
