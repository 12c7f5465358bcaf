"""Log-probs and values of completions' tokens, by the forward pass of training."""

import math

import jax.numpy as jnp

from shatter import documents, models
from shatter.cli.finetune.pretrained import Pretrained
from shatter.factored import FactoredLogits, as_array, sizes
from shatter.types import Array, Params


def policy_and_values(
    model: Pretrained,
    params: Params,
    head: Array | None,
    tokens: Array,
    mask: Array,
    valid: Array,
    temperature: float,
) -> tuple[Array, Array | None]:
    """Returns the log-probs of completions' tokens and the values before them, by one pass.

    Args:
      model: the pretrained model.
      params: parameters for `model.lm`.
      head: the value head `[D + 1]`; None = no values are computed.
      tokens: int `[..., T]`.
      mask: bool `[..., T]`, true on the completion.
      valid: bool `[..., T]`, false on padding.
      temperature: divides the logits.

    Returns:
      `[..., T]`, nats, and `[..., T]`; 0 outside the mask.
    """
    values: Array | None = None
    logits: Array | FactoredLogits
    if head is None:
        logits = models.lazy_logits(model.lm, params, tokens, valid=valid)
    else:
        assert model.lm.factored is not None
        factored = model.lm.factored(params, tokens, valid=valid)
        values = head_values(head, factored.rows.features, mask)
        is_large = math.prod(factored.shape) > sizes.MULTIPLIED_OUT_UP_TO
        logits = factored if is_large else as_array(factored)
    # Softmax of padding may be NaN, and its gradient would be 0 times NaN.
    counts = jnp.concatenate([mask[..., 1:], jnp.zeros_like(mask[..., :1])], axis=-1)
    keep = lambda leaf: jnp.where(counts[..., None], leaf, 0.0)
    if isinstance(logits, FactoredLogits):
        logits = _tempered(logits, temperature).map_rows(keep)
    else:
        logits = keep(logits / temperature)
    return jnp.where(mask, documents.token_log_probs(logits, tokens), 0.0), values


def _tempered(logits: FactoredLogits, temperature: float) -> FactoredLogits:
    if temperature == 1.0:
        return logits
    rows, columns = logits
    scale = (
        jnp.ones_like(rows.features[..., :1], logits.dtype) if rows.scale is None else rows.scale
    )
    bias = None if columns.bias is None else columns.bias / temperature
    return FactoredLogits(rows._replace(scale=scale / temperature), columns._replace(bias=bias))


def head_values(head: Array, features: Array, mask: Array) -> Array:
    """Returns the values of the states in which a completion's tokens are chosen.

    The value of a token's state is the mean of the last hidden layer at the token before, weighted
    by the head, plus a bias. So AdamW's learning rate of the head is about what a step changes a
    value by, however wide the model is.

    Args:
      head: `[D + 1]`, the weights and then the bias.
      features: `[..., T, D]`, the last hidden layer.
      mask: bool `[..., T]`, true on the completion, whose first token has one before it.

    Returns:
      `[..., T]`, in the head's type; 0 outside the mask.
    """
    # Features of padding may be NaN, and their gradient would be 0 times NaN.
    before = jnp.concatenate([mask[..., 1:], jnp.zeros_like(mask[..., :1])], axis=-1)
    features = jnp.where(before[..., None], features, 0.0).astype(head.dtype)
    values = features @ head[:-1] / features.shape[-1] + head[-1]
    shifted = jnp.concatenate([jnp.zeros_like(values[..., :1]), values[..., :-1]], axis=-1)
    return jnp.where(mask, shifted, 0.0)
