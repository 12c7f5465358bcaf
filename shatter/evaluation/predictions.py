"""Measures of an ensemble's predictions of held-out choices: log-losses and disagreement."""

import chex
import jax
import jax.numpy as jnp

from shatter.choice import luce_log_prob
from shatter.numerics import at_least_float32, finite_logs, log_mean_exp
from shatter.types import Array, Key


def marginal_log_loss(label_log_probs: Array) -> Array:
    """Returns the log-loss of the ensemble's mixture for each label.

    `-log (1/M) sum_m p_m(y_t | x_t)`.

    Args:
      label_log_probs: `[M, ..., T]`, each member's log-prob of each label, nats.

    Returns:
      `[..., T]`, nats.
    """
    return -log_mean_exp(label_log_probs, axis=0)


def joint_log_loss(label_log_probs: Array) -> Array:
    """Returns the log-loss of T labels together: `-log (1/M) sum_m prod_t p_m(y_t | x_t)`.

    Unlike the marginal loss, it distinguishes labels that are random from labels that the
    ensemble does not know yet.

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
    """Returns how far members disagree: the standard deviation of their log-odds of pairs.

    `sqrt(mean over queries and pairs i < j of Var_m(u_m(i) - u_m(j)))`. A shift of all utilities of
    a query does not matter. At a log-odds of 1 nat, the responses of a pair are chosen 0.73 to
    0.27.

    Args:
      response_log_probs: `[M, Q, K]`, each member's utilities of the responses to Q queries, nats.

    Returns:
      `[]`, nats; 0 if the members agree, inf if a response is impossible for some members only.

    Raises:
      AssertionError: if the array is not of rank 3.
    """
    chex.assert_rank(response_log_probs, 3)
    num_responses = response_log_probs.shape[-1]
    response_log_probs = finite_logs(response_log_probs)
    deviations = response_log_probs - jnp.mean(response_log_probs, axis=0, keepdims=True)
    deviations = deviations - jnp.mean(deviations, axis=-1, keepdims=True)
    # Centred numbers have a mean squared difference over pairs of 2 K / (K - 1) times their mean
    # square.
    return jnp.sqrt(jnp.mean(jnp.square(deviations)) * 2.0 * num_responses / (num_responses - 1))


def dyadic_inputs(
    key: Key, num_inputs: int, *, num_labels: int = 10, num_anchors: int = 2
) -> Array:
    """Draws the inputs of dyadic sampling: tau inputs from kappa anchors, which are drawn first.

    Source: Osband et al., Evaluating High-Order Predictive Distributions in Deep Learning, section
    4, https://arxiv.org/abs/2202.13509.

    Args:
      key: a typed key.
      num_inputs: number of inputs that anchors are drawn from.
      num_labels: tau.
      num_anchors: kappa.

    Returns:
      int `[num_labels]`, indices of inputs, at most kappa different ones.
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
    """Returns one random draw of the dyadic joint log-loss of an ensemble of choice models.

    tau queries are drawn from kappa anchors. Each gets a new label from the population, and the
    labels are scored by `joint_log_loss`. Average the result over keys.

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
