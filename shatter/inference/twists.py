"""Twists, the estimates of a document's final potential that guide SMC and weighted decoding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from shatter.documents.continuation import continuation
from shatter.inference.importance import has_mass
from shatter.models import LanguageModel
from shatter.numerics import assert_positive, at_least_float32
from shatter.types import Array, Params

Twist = Callable[[Array, Array], Array]
"""`(tokens[N, T], length[]) -> log_twists[N, V]`: log psi(s.a) for every next token a, in nats.

The document so far, s, is `tokens[:, :length]`, where T is the length of the prompt plus
max_length; the tokens after it may be anything. `length` is one traced integer for all rows. Where
s.a is a complete document (a is EOS or the last token), psi must be the terminal potential itself,
exp(r / beta), because the target is p0(x) psi(x) / Z. Elsewhere psi is a guess; the best one is
proportional to E_p0[exp(r / beta) | s.a]. It may be zero (-inf) only where every document that
begins with s.a has a potential of zero.
"""


class TwistModel(NamedTuple):
    """A twist that is a model: `log psi(s.a) = scale logits[a]` after the tokens s, in nats.

    It is read token by token with its cache, as the language model is, where a `Twist` computes
    every step anew. With `scale = 1 / beta` its logits are values, in the unit of the reward.

    Attributes:
      lm: a language model, or another function of tokens with its shape.
      params: its parameters.
      scale: what its logits are multiplied by.
    """

    lm: LanguageModel
    params: Params
    scale: float | Array = 1.0


class Guide(NamedTuple):
    """A twist that has read a prompt.

    Attributes:
      past: what has been read, with a row for every response.
      step: `(past, tokens[N, T], token[N], t) -> (log_twists[N, V], past)`; it reads the tokens so
        far, of which `token` is the last, and gives log psi of every response token t.
      take: `(past, rows[N]) -> past`, the chosen rows in their order.
    """

    past: Any
    step: Callable[[Any, Array, Array, Array], tuple[Array, Any]]
    take: Callable[[Any, Array], Any]


def guide(
    twist: Twist | TwistModel, prompt: Array, valid: Array | None, num_rows: int, max_length: int
) -> Guide:
    """Returns a twist, of either kind, that has read a prompt.

    Args:
      twist: the twist.
      prompt: int `[P]`.
      valid: bool `[P]`, false on padding; None = all true. A `Twist` sees the padding itself.
      num_rows: N, number of responses.
      max_length: largest number of response tokens.

    Returns:
      The guide.
    """
    if not isinstance(twist, TwistModel):
        compute = twist
        step = lambda past, tokens, token, t: (compute(tokens, prompt.shape[0] + t), past)
        return Guide((), step, lambda past, rows: past)
    lm, params, scale = twist
    row_valid = None if valid is None else valid[None]
    past, _, read, take = continuation(lm, params, prompt[None], row_valid, num_rows, max_length)

    def read_scaled(past: Any, tokens: Array, token: Array, t: Array) -> tuple[Array, Any]:
        del tokens
        logits, past = read(past, token, t)
        return scale * logits, past

    return Guide(past, read_scaled, take)


def exact_twist(
    ref_log_probs: list[Array],
    values: list[Array],
    policy_log_probs: list[Array],
    *,
    beta: float | Array = 1.0,
    prompt_length: int,
) -> Twist:
    """Returns the twist of an enumerated model under which SMC is exact, from its soft values.

    `psi(s) = exp(V(s) / beta) = E_p0[exp(r / beta) | s]`, computed from the soft-optimal policy:
    `log psi(s.a) = log pi*(a | s) - log p0(a | s) + V(s) / beta`, which is r / beta at a document's
    end. All weights of `smc` are then Z, and `weighted_decoding` samples the posterior.

    `shatter.documents.prefix_log_probs` returns log p0, and `shatter.documents.posterior_policy`
    the values and the policy. Call this inside a jitted function to make the tables arguments of
    the program; otherwise the twist closes over them.

    Source: Zhao, Brekelmans, Makhzani, Grosse, Probabilistic Inference in Language Models via
    Twisted Sequential Monte Carlo, https://arxiv.org/abs/2404.17546.

    Args:
      ref_log_probs: a list over prefix lengths t of `[V^t, V]`, log p0(a | s), nats, prefixes in
        lexicographic order.
      values: a list of `[V^t]`, V(s), in the unit of r.
      policy_log_probs: a list of `[V^t, V]`, log pi*(a | s), nats.
      beta: KL coefficient, > 0.
      prompt_length: number of prompt tokens P; the tables are those of one prompt.

    Returns:
      A twist for documents of P + len(ref_log_probs) tokens.

    Raises:
      AssertionError: if the shapes of the tables do not fit.
      ValueError: if beta is not above 0.
    """
    assert_positive(beta=beta)
    vocab_size = ref_log_probs[0].shape[-1]
    max_length = len(ref_log_probs)
    levels = []
    for t, (ref, value, policy) in enumerate(
        zip(ref_log_probs, values, policy_log_probs, strict=True)
    ):
        chex.assert_shape([ref, policy], (vocab_size**t, vocab_size))
        chex.assert_shape(value, (vocab_size**t,))
        ref, value, policy = map(at_least_float32, (ref, value, policy))
        log_twists = policy - ref + value[:, None] / beta
        levels.append(jnp.where(has_mass(ref), log_twists, 0.0))  # any value where p0 is 0
    table = jnp.concatenate(levels)
    starts = jnp.asarray([sum(vocab_size**t for t in range(level)) for level in range(max_length)])

    def twist(tokens: Array, length: Array) -> Array:
        chex.assert_shape(tokens, (None, prompt_length + max_length))
        row = jnp.zeros(tokens.shape[0], int)  # the prefix in its level: its digits in base V
        for position in range(prompt_length, prompt_length + max_length - 1):
            row = jnp.where(position < length, row * vocab_size + tokens[:, position], row)
        return table[starts[length - prompt_length] + row]

    return twist
