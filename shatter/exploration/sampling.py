"""Arms that draw from one law: uniform, the members' mixture, the mixture tempered.

Every arm of this package: `(key, log_probs[M, N], *, valid=None, num_responses=2) ->
indices[num_responses]`, with `log_probs` each member's log-probs of each candidate, defined up to a
shift a member, in any float type (computed in float32 at least). The responses differ by default:
each is redrawn until it differs from the earlier ones.

Every response is a valid candidate, and none repeats, with two exceptions that are errors under
checkify: where fewer candidates than responses are valid, some repeat, and where none is, all are
candidate 0. A log-prob of NaN, an error under checkify too, counts as impossible to its member.
"""

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
    """Uniformly among the candidates: on the pretrained model's samples this is passive learning.

    Args:
      key: a typed key.
      log_probs: `[M, N]`, only its shape matters.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K.
      distinct: whether the responses must differ.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
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
    """Samples of the prediction: all responses from the members' mixture, over the candidates.

    With one member, the point estimate, this asks about what the model would say: exploitation.
    With several it has the same law as sampling each response from a member of its own.

    Args:
      key: a typed key.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K.
      distinct: whether the responses must differ.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ.
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
    """Samples of the sequence-tempered prediction, `P(x)^(1 / temperature)` over the candidates.

    Args:
      key: a typed key.
      log_probs: `[M, N]`, nats.
      valid: bool `[N]`, false on candidates that may not be chosen.
      num_responses: K.
      distinct: whether the responses must differ.
      temperature: > 0; 1 is `greedy`, infinity `uniform`.

    Returns:
      int `[K]`, candidate indices.

    Raises:
      AssertionError: if the shapes do not fit.
      ValueError: if fewer than K candidates exist and the responses must differ, or by temperature.
    """
    assert_positive(temperature=temperature)
    log_probs, valid = prepare(log_probs, valid, num_responses, distinct)
    utilities = mixture(log_probs) / temperature
    return draw(key, utilities, valid, num_responses, distinct)
