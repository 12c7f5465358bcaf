"""Who writes the actions of a rollout: a language model, token by token, or a script."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.documents import sampling_logits
from shatter.models import LanguageModel
from shatter.numerics import finite_logs
from shatter.types import Array, Key, Params

Law = Callable[[Array], Array]
"""`logits of the model -> logits of the law that tokens are drawn from`."""


class Policy(NamedTuple):
    """How a rollout reads and writes, one token at a time.

    Attributes:
      start: `(max_length) -> past`, before any token is read.
      read: `(past, token[], t) -> past`, after token t of the transcript.
      write: `(key, past, state, turn, count) -> (token[], log_prob[])`, token `count` of the action
        of this turn, and its log-prob under the law that it was drawn from, nats. The key is that
        of the rollout; the functions fold the token's place into it.
      vocab_size: V, the number of tokens that can be read; None = any token.
    """

    start: Callable[[int], Any]
    read: Callable[[Any, Any, Any], Any]
    write: Callable[[Key, Any, Any, Any, Any], tuple[Any, Any]]
    vocab_size: int | None = None


class _Past(NamedTuple):
    """What a model has read: the law of the next token, the number of tokens, and its memory."""

    logits: Array
    length: Array
    memory: Any


def model_policy(lm: LanguageModel, params: Params, law: Law, end_of_action: int) -> Policy:
    """Returns the policy of a language model, with its cache if it has one.

    Without a cache every token takes a full forward pass.

    Args:
      lm: the language model.
      params: its parameters.
      law: what is drawn from, given the model's logits.
      end_of_action: the token that ends an action; it is only checked here.

    Returns:
      The policy.

    Raises:
      ValueError: if `end_of_action` is not a token of the vocabulary.
    """
    vocab_size = jax.eval_shape(lm.apply, params, jnp.zeros((1, 1), int)).shape[-1]
    if not 0 <= end_of_action < vocab_size:
        raise ValueError(
            f"end_of_action must be a token, 0 <= end_of_action < {vocab_size}, found "
            f"{end_of_action}"
        )
    remember, predict = _with_cache(lm, params) if lm.decode is not None else _without(lm, params)

    def start(max_length: int) -> _Past:
        # While it is traced, the model raises an error for documents that are too long for it.
        shape = jax.eval_shape(lm.apply, params, jnp.zeros((1, max_length), int))
        no_law = jnp.zeros(vocab_size, shape.dtype)
        return _Past(no_law, jnp.zeros((), int), remember(max_length))

    def read(past: _Past, token: Array, t: Array) -> _Past:
        logits, memory = predict(past.memory, jnp.asarray(token, int), jnp.asarray(t, int))
        checkify.debug_check(~jnp.any(jnp.isnan(logits)), "logits hold a NaN")
        return _Past(logits.astype(past.logits.dtype), past.length + 1, memory)

    def write(key: Key, past: _Past, state: Any, turn: Array, count: Array) -> tuple[Array, Array]:
        del state, turn, count
        scores = law(finite_logs(past.logits))
        token = jax.random.categorical(jax.random.fold_in(key, past.length), scores)
        return token.astype(int), jax.nn.log_softmax(scores)[token].astype(float)

    return Policy(start, read, write, vocab_size)


def _with_cache(lm: LanguageModel, params: Params) -> tuple[Callable, Callable]:
    init_cache, decode = lm.init_cache, lm.decode
    assert init_cache is not None and decode is not None

    def predict(cache: Any, token: Array, t: Array) -> tuple[Array, Any]:
        del t
        logits, cache = decode(params, cache, token[None, None])
        return logits[0, 0], cache

    return lambda max_length: init_cache(1, max_length), predict


def _without(lm: LanguageModel, params: Params) -> tuple[Callable, Callable]:
    def predict(tokens: Array, token: Array, t: Array) -> tuple[Array, Array]:
        tokens = tokens.at[t].set(token)  # the model is causal: it ignores the zeros behind
        return lm.apply(params, tokens)[t], tokens

    return lambda max_length: jnp.zeros(max_length, int), predict


def sampling_law(temperature: float | Array, top_k: int | None, top_p: float | Array | None) -> Law:
    """Returns the law of `sampling_logits` with its arguments bound.

    Args:
      temperature: divides the logits, > 0.
      top_k: only the k likeliest tokens are drawn; None = all.
      top_p: of these, only the smallest set of tokens with this mass; None = all.

    Returns:
      The law.
    """
    return lambda logits: sampling_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)


def scripted_policy(expert: Callable[[Key, Any], Any], end_of_action: int) -> Policy:
    """Returns the policy of a script that sees the environment's state, inside a program.

    Args:
      expert: `(key, state) -> action`, `Tokens`; asked again for every token, with the same key in
        the same turn.
      end_of_action: the token that is written after the script's last one.

    Returns:
      The policy, whose log-probs are 0.
    """

    def write(key: Key, past: Any, state: Any, turn: Array, count: Array) -> tuple[Array, Array]:
        del past
        action = expert(jax.random.fold_in(key, turn), state)
        place = jnp.minimum(count, action.tokens.shape[0] - 1)
        token = jnp.where(count < action.length, action.tokens[place], end_of_action)
        return token.astype(int), jnp.zeros(())

    return Policy(lambda max_length: (), lambda past, token, t: past, write)
