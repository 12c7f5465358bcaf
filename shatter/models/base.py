"""The language model, a NamedTuple of pure functions, and how to make one from a flax module."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax.numpy as jnp

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
      repeat_cache: `(cache, n) -> cache`, with every row of the batch n times in a row, so that
        several responses share the prefill of their prompt; present if `decode` is.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]
    features: Callable[..., Array] | None = None
    init_cache: Callable[[int, int], Any] | None = None
    decode: Callable[..., tuple[Array, Any]] | None = None
    repeat_cache: Callable[[Any, int], Any] | None = None


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
