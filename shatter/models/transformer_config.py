"""The configuration of a transformer."""

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
"""Types and ranges of the fields of `Rope`, within which all angles are finite in float32."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: pairs of a head's features are rotated by position times frequency.

    Source: Su et al., RoFormer, https://arxiv.org/abs/2104.09864; the scaling "llama3" is that of
    the configurations of Llama 3.1.

    Attributes:
      theta: frequency i of a head of size s is `theta^(-2 i / s)`, in radians a token.
      scaling: "none"; "linear" divides every frequency by `factor`; "llama3" divides the low
        frequencies, keeps the high ones, and interpolates between them.
      factor: how much longer documents are than those of pretraining.
      low_frequency_factor: frequencies with fewer turns in `original_max_length` tokens are low.
      high_frequency_factor: frequencies with more turns are high.
      original_max_length: the largest length of a document in pretraining, in tokens.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: with the name of a wrong field, what is expected and what was found.
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
    """The sizes and kinds of a transformer's parts; the defaults are those of a didactic one.

    Attributes:
      vocab_size: V, the number of tokens.
      max_length: the largest number of valid tokens in a document, prompt included.
      width: D, the size of the residual stream.
      num_layers: the number of blocks.
      num_heads: the number of attention heads; it divides `width` if `head_size` is None.
      num_kv_heads: the number of heads of keys and values, each shared by the same number of heads
        of queries; it divides `num_heads`. None = `num_heads`.
      head_size: the number of features of a head. None = `width / num_heads`.
      mlp_width: H, the hidden width of the feed-forward part. None = `4 width`.
      norm: "layer" (scale and bias) or "rms" (scale).
      norm_epsilon: the constant that a norm adds to the variance.
      activation: the activation of the feed-forward part; "gelu" is its tanh approximation.
      gated: whether the feed-forward part computes `activation(gate) * up`.
      rope: rotary positions. None = a learned vector for every position.
      qkv_bias: whether queries, keys and values have biases.
      attention_out_bias: whether the output of the attention has a bias.
      mlp_bias: whether the feed-forward part has biases.
      qk_norm: whether an RMS norm is applied to every head's query and key, before the rotation.
      tied: whether the head is the token embedding.
      head_bias: whether an untied head has a bias.
      dtype: the type of the computation. None = that of the parameters. With "bfloat16" the softmax
        of the attention and the logits are still in float32.
      remat: whether blocks are computed again in the backward pass, which takes less memory and
        more time. Without it, models of more than 8 blocks keep their products alone.
      bos: the id of the token that begins a document, for the caller; the model does not use it.
      eos: the ids of the tokens that end a document, likewise.
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
        """Checks the fields.

        Raises:
          ValueError: if a field has another type or is out of its range (`FIELDS`), a number of
            heads does not divide what it should, or a name is unknown.
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
        """Returns `num_kv_heads`, or its default."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def size_of_head(self) -> int:
        """Returns `head_size`, or its default."""
        return self.width // self.num_heads if self.head_size is None else self.head_size

    @property
    def hidden_width(self) -> int:
        """Returns `mlp_width`, or its default."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width


def _check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, found {value!r}")
