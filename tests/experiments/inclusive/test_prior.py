"""The pretrained model's own choices as a prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.inclusive.prior import num_prior_comparisons, prior_comparisons
from experiments.inclusive.texts import Pool
from shatter.losses import ilhf_ranking_loss

VALID = np.array([[True, True, True], [True, True, False]])


@pytest.mark.slow
def test_prior_answers_are_those_of_the_pretrained_model(float64):
    log_p0 = jnp.where(VALID, jnp.array([[-3.0, -1.0, -2.5], [-0.5, -4.0, 0.0]]), -jnp.inf)
    pool = Pool((), jnp.asarray(VALID))
    rows = prior_comparisons(pool, log_p0)
    assert rows.weight.shape == (3 * 2 + 2 * 1,) == (num_prior_comparisons(pool),)
    prompts, items = np.asarray(rows.query.prompt_id), np.asarray(rows.query.item_ids)
    np.testing.assert_allclose(np.bincount(prompts, rows.weight), 1.0)

    def loss(log_probs):
        shown = log_probs[prompts[:, None], items]
        return jnp.sum(rows.weight * ilhf_ranking_loss(shown, rows.ranks))

    start = jnp.where(VALID, log_p0, 0.0)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(start), 0.0, atol=1e-12)  # the minimiser
    assert loss(start.at[0, 0].add(1.0)) > loss(start)
    assert loss(start.at[1].add(1.0)) == loss(start)  # a shift of a prompt is no choice
