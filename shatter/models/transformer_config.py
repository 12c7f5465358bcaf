"""The configuration of a transformer."""

import dataclasses
from functools import partial
from typing import Literal

import flax.linen as nn

from shatter.models.fields import FLAG, SIZE, Field, check_choice, check_fields
from shatter.models.rope import ROPE_FIELDS, Rope

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
    "post_norms": FLAG,
    "norm_offset": FLAG,
    "scaled_embedding": FLAG,
    "attention_size": SIZE._replace(optional=True),
    "window": SIZE._replace(optional=True),
    "full_layers": Field("ids", 0),
    "local_theta": ROPE_FIELDS["theta"]._replace(optional=True),
    "tied": FLAG,
    "head_bias": FLAG,
    "fused_attention": FLAG,
    "remat": FLAG,
    "unrolled_layers": Field("integer", 0),
    "bos": Field("integer", 0, optional=True),
    "eos": Field("ids", 0),
}
"""Types and ranges of the fields of `TransformerConfig`."""


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
      post_norms: whether a norm is applied to the output of the attention and of the feed-forward
        part too, before they are added to the residual stream.
      norm_offset: whether RMS norms multiply by `1 + scale` in place of `scale`.
      scaled_embedding: whether token embeddings are multiplied by `sqrt(width)`, rounded to their
        type.
      attention_size: the products of queries and keys are divided by its square root. None =
        `head_size`.
      window: the number of valid tokens to which a token attends, itself and those just before it.
        None = all.
      full_layers: the numbers, from 0 on, of the blocks in which tokens attend to all tokens before
        them although there is a window.
      local_theta: the `theta` of the rotary positions of the blocks with a window, without scaling.
        None = `rope` there too.
      tied: whether the head is the token embedding.
      head_bias: whether an untied head has a bias.
      dtype: the type of the computation. None = that of the parameters. With "bfloat16" the softmax
        of the attention and the logits are still in float32.
      fused_attention: whether attention without a cache, as in training and scoring, is computed by
        cuDNN's fused kernel, which takes less time and memory. It needs an NVIDIA GPU and
        `dtype="bfloat16"`.
      remat: whether blocks are computed again in the backward pass, which takes less memory and
        more time. Without it, models whose blocks are scanned keep their products alone.
      unrolled_layers: the largest number of blocks that are unrolled; more are scanned. An unrolled
        program runs faster at any depth, but takes longer to compile the deeper it is.
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
    post_norms: bool = False
    norm_offset: bool = False
    scaled_embedding: bool = False
    attention_size: int | None = None
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    local_theta: float | None = None
    tied: bool = False
    head_bias: bool = True
    dtype: Literal["float32", "bfloat16"] | None = None
    fused_attention: bool = False
    remat: bool = False
    unrolled_layers: int = 8
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: if a field has another type or is out of its range (`FIELDS`), a number of
            heads does not divide what it should, a name is unknown, or a field needs another one.
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
        if self.norm_offset and self.norm != "rms":
            raise ValueError(f"norm_offset needs norm 'rms', found {self.norm!r}")
        if self.fused_attention and self.dtype != "bfloat16":
            raise ValueError(f"fused_attention needs dtype 'bfloat16', found {self.dtype!r}")
        self._check_window()
        check_choice("norm", self.norm, ("layer", "rms"))
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_choice("dtype", self.dtype, ("float32", "bfloat16", None))

    def _check_window(self) -> None:
        layers = self.full_layers
        if not isinstance(layers, tuple) or list(layers) != sorted({*layers}):
            raise ValueError(f"full_layers must be a tuple of increasing numbers, found {layers!r}")
        if layers and layers[-1] >= self.num_layers:
            raise ValueError(
                f"full_layers must be below num_layers {self.num_layers}, found {layers[-1]}"
            )
        if self.window is None and (layers or self.local_theta is not None):
            raise ValueError("full_layers and local_theta need a window, found window None")
        if self.rope is None and self.local_theta is not None:
            raise ValueError("local_theta needs rotary positions, found rope None")

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


def select_layers(config: TransformerConfig, start: int, stop: int) -> TransformerConfig:
    """Returns the configuration of a transformer that has some of another's blocks.

    Args:
      config: the configuration of the other transformer.
      start: the number of the first block, from 0 on.
      stop: the number after the last one.

    Returns:
      The configuration with `stop - start` layers; those with a window are the same ones.
    """
    full_layers = tuple(layer - start for layer in config.full_layers if start <= layer < stop)
    return dataclasses.replace(config, num_layers=stop - start, full_layers=full_layers)
