"""The pretrained model's own choices, which stand in the store beside people's answers."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.inclusive.texts import Pool
from shatter.types import Array, Comparison, item_query


def num_prior_comparisons(pool: Pool) -> int:
    """Returns how many comparisons `prior_comparisons` gives: every pair of options, both ways."""
    num_options = np.sum(np.asarray(pool.valid), axis=1)
    return int(np.sum(num_options * (num_options - 1)))


def prior_comparisons(pool: Pool, log_probs: Array) -> Comparison:
    """Returns the pretrained model's choice between every two options of every prompt, both ways.

    The weights of a prompt's comparisons are the probabilities of the choices and sum to 1. Beside
    the answers in the store they are a prior for the choices, as pseudo-counts are for shares. Each
    member of an ensemble weighs them by draws of its own, as it does the answers.

    Args:
      pool: P prompts with at most K options.
      log_probs: `[P, K]`, the options' log-probs under the pretrained model, nats.

    Returns:
      The comparisons.
    """
    valid = np.asarray(pool.valid)
    prompts, first, second = np.nonzero(
        valid[:, :, None] & valid[:, None, :] & ~np.eye(valid.shape[1], dtype=bool)
    )
    num_pairs = np.bincount(prompts)[prompts] / 2
    shown = log_probs[prompts[:, None], np.stack([first, second], axis=1)]
    items = jnp.asarray(np.stack([first, second], axis=1))
    return Comparison(
        query=item_query(items, prompt_id=jnp.asarray(prompts)),
        ranks=jnp.broadcast_to(jnp.array([1, 2]), items.shape),
        weight=jax.nn.sigmoid(shown[:, 0] - shown[:, 1]) / num_pairs,
    )
