"""The language model, a NamedTuple of pure functions, and how to make one from a flax module."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from shatter.factored import FactoredLogits, sizes
from shatter.types import Array, Key, Params


class LanguageModel(NamedTuple):
    """A language model: pure functions of its parameters.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, tokens[..., T], *, valid=None) -> logits[..., T, V]`; `logits[..., t, :]` is
        the law of token t + 1 given tokens 0..t. `valid[..., T]` is false on padding, left or
        right; positions come from it.
      features: `(params, tokens, *, valid=None) -> [..., T, D]`, the last hidden layer; optional.
      init_cache: `(batch, length) -> cache`, an empty cache for `length` tokens; optional.
      decode: `(params, cache, tokens[B, t], *, valid=None) -> (logits[B, t, V], cache)`, both the
        prefill and every later step of generation; optional.
      take_cache: `(cache, rows[N]) -> cache`, the chosen rows of the batch in their order, so that
        several responses share the prefill of their prompt, and a search goes on from some of its
        documents; present if `decode` is.
      factored: `(params, tokens, *, valid=None) -> FactoredLogits`, the logits of `apply` as
        factors; optional.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]
    features: Callable[..., Array] | None = None
    init_cache: Callable[[int, int], Any] | None = None
    decode: Callable[..., tuple[Array, Any]] | None = None
    take_cache: Callable[[Any, Array], Any] | None = None
    factored: Callable[..., FactoredLogits] | None = None


def lazy_logits(
    lm: LanguageModel,
    params: Params,
    tokens: Array,
    *,
    valid: Array | None = None,
    copies: int = 1,
) -> Array | FactoredLogits:
    """Returns logits that are multiplied out only where they are few.

    The log-probs of given tokens, `shatter.documents.log_prob` and `token_log_probs`, and
    `shatter.losses.forward_kl_loss` take either form, and are equal up to rounding.

    Args:
      lm: the language model; one without `factored` always gives an array.
      params: its parameters.
      tokens: `[..., T]`, or what else `lm.apply` takes in their place.
      valid: bool `[..., T]`, false on padding; None = all true.
      copies: how many such logits are held at the same time, for example where members are vmapped.

    Returns:
      `[..., T, V]`, or its factors.
    """
    if lm.factored is None:
        return lm.apply(params, tokens, valid=valid)
    make = partial(lm.factored, valid=valid)
    shape = jax.eval_shape(make, params, tokens).shape
    is_large = copies * math.prod(shape) > sizes.MULTIPLIED_OUT_UP_TO
    return make(params, tokens) if is_large else lm.apply(params, tokens, valid=valid)


def from_flax(module: nn.Module, *, length: int = 1) -> LanguageModel:
    """Makes a language model from a flax (linen) module that maps tokens to logits.

    All variables of the module are the parameters. The module must be causal: the logits at t may
    depend on tokens 0..t only. Wrap an nnx module with `flax.nnx.bridge.ToLinen` first.

    Args:
      module: `module.apply(variables, tokens[..., T]) -> logits[..., T, V]`. Its `__call__` needs
        an argument `valid` if documents with padding are to be scored.
      length: the number of tokens of the document with which `init` initialises the module.

    Returns:
      A language model without a cache. Its `apply` raises TypeError if it is given `valid` and the
      module does not take it.

    Raises:
      TypeError: if `module` is not a linen module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"from_flax expects a flax.linen module (an instance), found {type(module)!r}; wrap an "
            "nnx module with flax.nnx.bridge.ToLinen"
        )
    takes_valid = "valid" in inspect.signature(module.__call__).parameters

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, length), int))

    def apply(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        chex.assert_type(tokens, int)
        if valid is None:
            return cast(Array, module.apply(params, tokens))
        if not takes_valid:
            raise TypeError(
                f"{type(module).__name__}.__call__ takes no `valid`, so it cannot tell padding "
                "from text: pass documents without padding before the response, or add the argument"
            )
        return cast(Array, module.apply(params, tokens, valid=valid))

    return LanguageModel(init=init, apply=apply)
