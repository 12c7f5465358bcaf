"""Pair arms that draw from one law: uniform, the members' mixture, the mixture tempered."""

import jax.numpy as jnp

from shatter.exploration.base import draw, mixture, prepare
from shatter.numerics import assert_positive
from shatter.types import Array, Key


def uniform(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Draws responses uniformly among the candidates, without regard to the members.

    On samples of the pretrained model this is passive learning. Arguments, result and errors are
    those of `PairArm`.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    return draw(key, jnp.zeros(valid.shape), valid, num_responses, distinct)


def greedy(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
) -> Array:
    """Draws responses from the prediction, the members' mixture over the candidates.

    With one member, the point estimate, this asks about what the model would say: exploitation.
    With several it has the same law as sampling each response from a member of its own. Arguments,
    result and errors are those of `PairArm`.
    """
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    return draw(key, mixture(log_probs), valid, num_responses, distinct)


def boltzmann(
    key: Key,
    log_probs: Array,
    *,
    valid: Array | None = None,
    num_responses: int = 2,
    distinct: bool = True,
    temperature: float | Array = 2.0,
) -> Array:
    """Draws responses from the tempered prediction, `P(x)^(1 / temperature)` over the candidates.

    P is the members' mixture. The temperature is above 0 (else a ValueError): 1 is `greedy`,
    infinity `uniform`. Other arguments, result and errors are those of `PairArm`.
    """
    assert_positive(temperature=temperature)
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    utilities = mixture(log_probs) / temperature
    return draw(key, utilities, valid, num_responses, distinct)
