"""What a transformer is made of."""

import dataclasses
from functools import partial
from typing import Any, Literal

import flax.linen as nn

from shatter.models.fields import FLAG, SIZE, Field, check_fields

ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu_exact": partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
}

FIELDS = {
    "vocab_size": SIZE,
    "max_length": SIZE,
    "width": SIZE,
    "num_layers": SIZE,
    "num_heads": SIZE,
    "num_kv_heads": SIZE._replace(optional=True),
    "head_size": SIZE._replace(optional=True),
    "mlp_width": SIZE._replace(optional=True),
    "norm_epsilon": Field("number", 1e-20, 1.0),
    "gated": FLAG,
    "qkv_bias": FLAG,
    "attention_out_bias": FLAG,
    "mlp_bias": FLAG,
    "qk_norm": FLAG,
    "tied": FLAG,
    "head_bias": FLAG,
    "remat": FLAG,
    "bos": Field("integer", 0, optional=True),
    "eos": Field("ids", 0),
}
"""Types and ranges of the fields of `TransformerConfig`."""

_FACTOR = Field("number", 1e-3, 1e9)
ROPE_FIELDS = {
    "theta": Field("number", 1.0, 1e15),
    "factor": _FACTOR,
    "low_frequency_factor": _FACTOR,
    "high_frequency_factor": _FACTOR,
    "original_max_length": SIZE,
}
"""Types and ranges of the fields of `Rope`: beyond them angles are not finite in float32."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: pairs of a head's features turn by position times frequency.

    Source: Su et al., RoFormer, https://arxiv.org/abs/2104.09864; the scaling "llama3" as the
    configurations of Llama 3.1 give it.

    Attributes:
      theta: frequency i of a head of size s is `theta^(-2 i / s)`, radians a token.
      scaling: "none"; "linear": every frequency is divided by `factor`; "llama3": the low ones
        are, the high ones are not, with a ramp between.
      factor: how much longer documents are than those of pretraining.
      low_frequency_factor: below this many turns in `original_max_length` a frequency is low.
      high_frequency_factor: above this many it is high.
      original_max_length: tokens of a document of pretraining.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
          ValueError: naming the field, what is expected and what was found.
        """
        check_fields(vars(self), ROPE_FIELDS)
        _check_choice("scaling", self.scaling, ("none", "linear", "llama3"))
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if self.scaling == "llama3" and not low < high:
            raise ValueError(
                f"low_frequency_factor must be below high_frequency_factor, found {low} and {high}"
            )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What a transformer is made of; the defaults are those of a didactic one.

    Attributes:
      vocab_size: V, number of tokens.
      max_length: largest number of valid tokens in a document, prompt included.
      width: D, size of the residual stream.
      num_layers: number of blocks.
      num_heads: attention heads; divides `width` where `head_size` is not given.
      num_kv_heads: heads of keys and values, each shared by as many heads of queries; divides
        `num_heads`. None = `num_heads`.
      head_size: features of a head. None = `width / num_heads`.
      mlp_width: hidden width of the feed-forward part. None = `4 width`.
      norm: "layer" (scale and bias) or "rms" (scale).
      norm_epsilon: what a norm adds to the variance.
      activation: of the feed-forward part; "gelu" is its tanh form.
      gated: the feed-forward part is `activation(gate) * up`.
      rope: rotary positions. None = a learned vector a position.
      qkv_bias: whether queries, keys and values have biases.
      attention_out_bias: whether the attention's output has one.
      mlp_bias: whether the feed-forward part has them.
      qk_norm: an RMS norm over every head's query and key, before they turn.
      tied: the head is the token embedding.
      head_bias: whether an untied head has a bias.
      dtype: of the computation. None = that of the parameters. With "bfloat16" the softmax of the
        attention and the logits are in float32 nevertheless.
      remat: blocks are computed again in the backward pass instead of kept: less memory, more time.
      bos: the token id that begins a document; nothing here reads it.
      eos: the token ids that end one; nothing here reads them.
    """

    vocab_size: int
    max_length: int
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_size: int | None = None
    mlp_width: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-6
    activation: Literal["gelu", "gelu_exact", "relu", "silu"] = "gelu"
    gated: bool = False
    rope: Rope | None = None
    qkv_bias: bool = True
    attention_out_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    tied: bool = False
    head_bias: bool = True
    dtype: Literal["float32", "bfloat16"] | None = None
    remat: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
          ValueError: if a field is of another type or out of its range (`FIELDS`), heads do not
            divide what they should, or a name is unknown.
        """
        check_fields(vars(self), FIELDS)
        if not isinstance(self.eos, tuple):
            raise ValueError(f"eos must be a tuple of token ids, found {self.eos!r}")
        if self.head_size is None and self.width % self.num_heads:
            raise ValueError(
                f"num_heads must divide width, found width {self.width}, heads {self.num_heads}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads, found {self.kv_heads} and {self.num_heads}"
            )
        if self.rope is not None and self.size_of_head % 2:
            raise ValueError(f"rotary positions need an even head size, found {self.size_of_head}")
        _check_choice("norm", self.norm, ("layer", "rms"))
        _check_choice("activation", self.activation, tuple(ACTIVATIONS))
        _check_choice("dtype", self.dtype, ("float32", "bfloat16", None))

    @property
    def kv_heads(self) -> int:
        """`num_kv_heads`, or what it is by default."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def size_of_head(self) -> int:
        """`head_size`, or what it is by default."""
        return self.width // self.num_heads if self.head_size is None else self.head_size

    @property
    def hidden_width(self) -> int:
        """`mlp_width`, or what it is by default."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width


def _check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}")
