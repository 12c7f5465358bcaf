"""The loss that learns a twist, the estimate of a document's final potential, from samples."""

import chex
import jax
import jax.numpy as jnp
from jax.experimental import checkify

from shatter.numerics import finite_logs
from shatter.types import Array


def contrastive_twist_loss(
    log_twists: Array, log_potentials: Array, mask: Array, log_ratios: Array | None = None
) -> Array:
    """Returns the loss of contrastive twist learning of K samples of a proposal.

    `sum_t KL(sigma_t || pi_t)`, where sigma_t weighs sample k by its potential,
    `sigma_t(k) ~ w_T(k) exp(log phi(x_k))`, and pi_t by its twist after t tokens,
    `pi_t(k) ~ w_t(k) psi(x_k,1:t)`; both sum to one over the samples, and `w_t = p0 / proposal` of
    the first t tokens is 1 where the samples are p0's. The gradient of a term is `E_pi_t grad log
    psi - E_sigma_t grad log psi`, the contrastive one, estimated with self-normalised weights. With
    infinitely many samples it is 0 where psi(s) is proportional to E_p0[phi | s] at each length.
    The loss itself is not 0 there, because documents that begin alike have different potentials.

    That factor, one for each length, is hardly learned: it is only seen beside documents that have
    ended. It does not matter to decoding token by token, nor to the evidence of sequential Monte
    Carlo. It does where documents of different lengths are compared, as in beams with EOS and in
    trees: multiply psi after t tokens by the mean of phi over samples that have a token t, over the
    mean of psi there.
    After a document's end its potential stands in the place of its twist.

    Source: Zhao, Brekelmans, Makhzani, Grosse, Probabilistic Inference in Language Models via
    Twisted Sequential Monte Carlo, section 4.1, https://arxiv.org/abs/2404.17546.

    Args:
      log_twists: `[..., K, T]`, log psi of the document up to and including token t, nats.
      log_potentials: `[..., K]`, log phi of the whole documents, for example r / beta, nats; no
        gradient passes.
      mask: bool `[..., K, T]`, true on the response's tokens, EOS included; there are no columns of
        the prompt.
      log_ratios: `[..., K, T]`, log p0 - log proposal of every token, nats; no gradient passes;
        None = the samples are p0's.

    Returns:
      `[...]`, nats.

    Raises:
      AssertionError: if the shapes or types do not fit.
    """
    chex.assert_type([log_twists, log_potentials, mask], [float, float, bool])
    chex.assert_equal_shape([log_twists, mask])
    chex.assert_equal_shape([log_twists[..., 0], log_potentials])
    checkify.debug_check(
        ~jnp.any(jnp.isnan(log_potentials) | jnp.isposinf(log_potentials)),
        "the log potentials hold a NaN or +inf",
    )
    log_potentials = jax.lax.stop_gradient(finite_logs(log_potentials))
    log_twists = jnp.where(mask, finite_logs(log_twists), log_potentials[..., None])
    log_weights = jnp.zeros_like(log_twists)
    if log_ratios is not None:
        chex.assert_equal_shape([log_twists, log_ratios])
        ratios = jnp.where(mask, finite_logs(log_ratios), 0.0)
        log_weights = jax.lax.stop_gradient(jnp.cumsum(ratios, axis=-1))
    wanted = jax.nn.log_softmax(log_potentials + log_weights[..., -1], axis=-1)[..., None]
    found = jax.nn.log_softmax(log_twists + log_weights, axis=-2)
    return jnp.sum(jnp.exp(wanted) * (wanted - found), axis=(-2, -1))
