"""Exact samples of a target law by rejection sampling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import at_least_float32
from shatter.types import Array, Key


class Rejection(NamedTuple):
    """The result of rejection sampling.

    Attributes:
      sample: the last draw of the proposal.
      accepted: bool `[]`; false if all tries were rejected and `sample` is not from the target.
      num_tries: int `[]`, number of proposals.
    """

    sample: Any
    accepted: Array
    num_tries: Array


def rejection_sample(
    key: Key,
    propose: Callable[[Key], Any],
    log_weight: Callable[[Any], Array],
    *,
    log_bound: float | Array,
    max_tries: int,
) -> Rejection:
    """Draws one sample of p, where P = Z p, by proposing from g until a proposal is accepted.

    A proposal x is accepted with probability `exp(log P(x) - log g(x) - log_bound)`. If the bound
    holds, an accepted sample has exactly the law p, and each try is accepted with probability
    `Z exp(-log_bound)`. For the posterior p0 exp(r / beta) / Z and g = p0, the log weight is
    r(x) / beta and max r / beta is a bound. Under `jax.vmap` all lanes wait for the slowest one,
    and checkify cannot check the bound; use `jax.lax.map` to check it.

    Source: von Neumann, Various techniques used in connection with random digits, 1951; Owen, Monte
    Carlo theory, methods and examples, chapter 4, https://artowen.su.domains/mc/Ch-nonunifrng.pdf.

    Args:
      key: a typed key.
      propose: `(key) -> x`, a draw of g; any pytree of arrays.
      log_weight: `(x) -> []`, log P(x) - log g(x), nats; -inf is never accepted.
      log_bound: an upper bound of the log weight, nats. If it is too low, the samples have the law
        min(P, g exp(log_bound)), normalised (an error under checkify).
      max_tries: largest number of proposals.

    Returns:
      The sample, whether it was accepted, and the number of tries.

    Raises:
      AssertionError: if the log weight is not a floating scalar.
      ValueError: if `max_tries` is not positive.
    """
    if max_tries < 1:
        raise ValueError(f"rejection_sample expects max_tries >= 1, found {max_tries}")

    def attempt(state: Rejection) -> Rejection:
        propose_key, accept_key = jax.random.split(jax.random.fold_in(key, state.num_tries))
        sample = propose(propose_key)
        weight = log_weight(sample)
        chex.assert_rank(weight, 0)
        chex.assert_type(weight, float)
        log_ratio = at_least_float32(weight) - at_least_float32(log_bound)
        slack = 16 * jnp.finfo(log_ratio.dtype).eps * jnp.maximum(1.0, jnp.abs(log_bound))
        checkify.debug_check(
            log_ratio <= slack,
            "a log weight is {excess} nats above log_bound",
            excess=log_ratio,
        )
        accepted = -jax.random.exponential(accept_key, dtype=log_ratio.dtype) <= log_ratio
        return Rejection(sample, accepted, state.num_tries + 1)

    empty = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(propose, key)
    )
    start = Rejection(empty, jnp.zeros((), bool), jnp.zeros((), int))
    rejected = lambda state: ~state.accepted & (state.num_tries < max_tries)
    return jax.lax.while_loop(rejected, attempt, start)
