"""Held-out choices: log-loss of one model, marginal and joint log-loss of an ensemble."""

import chex
import jax
import jax.numpy as jnp

from shatter.choice import luce_log_prob
from shatter.numerics import at_least_float32, finite_logs, log_mean_exp
from shatter.types import Array, Key


def marginal_log_loss(label_log_probs: Array) -> Array:
    """Log-loss of the ensemble's mixture, label by label: `-log (1/M) sum_m p_m(y_t | x_t)`.

    Args:
      label_log_probs: `[M, ..., T]`, each member's log-prob of each label, nats.

    Returns:
      `[..., T]`, nats.
    """
    return -log_mean_exp(label_log_probs, axis=0)


def joint_log_loss(label_log_probs: Array) -> Array:
    """Log-loss of labels judged together: `-log (1/M) sum_m prod_t p_m(y_t | x_t)`.

    Only the joint loss tells a member that is sure and wrong from one that does not know.

    Source: Osband et al., The Neural Testbed: Evaluating Joint Predictions,
    https://arxiv.org/abs/2110.04629.

    Args:
      label_log_probs: `[M, ..., T]`, each member's log-prob of each label, nats.

    Returns:
      `[...]`, nats for all T labels.
    """
    label_log_probs = at_least_float32(label_log_probs)
    return marginal_log_loss(jnp.sum(label_log_probs, axis=-1, keepdims=True))[..., 0]


def disagreement(response_log_probs: Array) -> Array:
    """How far members are apart: the standard deviation of their log-odds of pairs.

    `sqrt(mean over queries and pairs i < j of Var_m(u_m(i) - u_m(j)))`; utilities count up to a
    shift a query. The two responses of a pair that a member of a unit prior separates by one
    standard deviation are chosen .73 to .27.

    Args:
      response_log_probs: `[M, Q, K]`, each member's utilities of the responses to Q queries, nats.

    Returns:
      `[]`, nats; 0 where members agree; inf where, to some of them alone, a response is impossible.

    Raises:
      AssertionError: if the shape is another.
    """
    chex.assert_rank(response_log_probs, 3)
    num_responses = response_log_probs.shape[-1]
    response_log_probs = finite_logs(response_log_probs)
    away = response_log_probs - jnp.mean(response_log_probs, axis=0, keepdims=True)
    away = away - jnp.mean(away, axis=-1, keepdims=True)
    # Mean over pairs of the squared difference = 2 K / (K - 1) times the mean square around 0.
    return jnp.sqrt(jnp.mean(jnp.square(away)) * 2.0 * num_responses / (num_responses - 1))


def dyadic_inputs(
    key: Key, num_inputs: int, *, num_labels: int = 10, num_anchors: int = 2
) -> Array:
    """Dyadic sampling: tau inputs redrawn from kappa anchor inputs.

    Source: Osband et al., Evaluating High-Order Predictive Distributions in Deep Learning, section
    4, https://arxiv.org/abs/2202.13509.

    Args:
      key: a typed key.
      num_inputs: how many inputs there are to draw anchors from.
      num_labels: tau.
      num_anchors: kappa.

    Returns:
      int `[num_labels]`, input indices, of at most kappa kinds.
    """
    anchor_key, pick_key = jax.random.split(key)
    anchors = jax.random.randint(anchor_key, (num_anchors,), 0, num_inputs)
    return anchors[jax.random.randint(pick_key, (num_labels,), 0, num_anchors)]


def dyadic_joint_log_loss(
    key: Key,
    response_log_probs: Array,
    true_log_probs: Array,
    *,
    num_labels: int = 10,
    num_anchors: int = 2,
) -> Array:
    """One draw of the dyadic joint log-loss of an ensemble of choice models.

    tau queries are redrawn from kappa anchors, each labelled afresh by the population, and the
    labels are judged together. Average over keys.

    Source: Osband et al., Evaluating High-Order Predictive Distributions in Deep Learning, section
    4, https://arxiv.org/abs/2202.13509.

    Args:
      key: a typed key.
      response_log_probs: `[M, Q, K]`, each member's log-probs of the responses to Q queries, nats.
      true_log_probs: `[Q, K]`, the population's log density of the same responses, nats.
      num_labels: tau.
      num_anchors: kappa.

    Returns:
      `[]`, nats for all tau labels.

    Raises:
      AssertionError: if the shapes do not fit.
    """
    chex.assert_equal_shape([response_log_probs[0], true_log_probs])
    input_key, label_key = jax.random.split(key)
    inputs = dyadic_inputs(
        input_key, true_log_probs.shape[0], num_labels=num_labels, num_anchors=num_anchors
    )
    labels = jax.random.categorical(label_key, at_least_float32(true_log_probs)[inputs])
    members = response_log_probs[:, inputs]
    labels = jnp.broadcast_to(labels, members.shape[:-1])
    return joint_log_loss(luce_log_prob(members, labels))
