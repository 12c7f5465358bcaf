"""Online: which candidates are drawn, and of which pairs an arm may choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.online import process
from experiments.online.arms import ARMS
from experiments.online.members import member_params, member_samples
from shatter import documents
from tests.experiments.online.worlds import load, one_of

pytestmark = pytest.mark.slow  # each compiles learners


def ranks_of(world, params, tokens):
    """Returns how many tokens are likelier than each response token."""
    logits = world.lm.apply(params, tokens)[..., -world.config.max_length - 1 : -1, :]
    said = tokens[..., -world.config.max_length :, None]
    chosen = jnp.take_along_axis(logits, said, axis=-1)
    return jnp.sum(logits > chosen, axis=-1)


@pytest.mark.parametrize(
    ("setting", "arm"),
    [("closed", "passive"), ("open", "sampled"), ("open", "dpo_online"), ("open", "online")],
)
def test_candidates_are_of_the_likeliest_tokens(folder, tmp_path, setting, arm):
    """Of who says them, whoever learns; log-probs and measured samples are of whole laws."""
    changes = {"queries_per_round": 24, "num_candidates": 8, "prompts": ("a dog found a",) * 2}
    world, fixed = load(folder, tmp_path, setting, candidate_top_k=3, **changes)

    @jax.jit
    def ask(fixed):
        learner = process.make_learner(world, fixed, ARMS[arm])
        state = learner.interaction.init(jax.random.key(0))
        own = learner.speaker(state).own
        asked = learner.interaction.propose(state, jax.random.key(1))
        number = jax.tree.leaves(own)[0].shape[0]
        who = [member_params(world, fixed.params, one_of(own, m)) for m in range(number)]
        who = [fixed.params] if ARMS[arm].candidates == "base" else who
        ranks = jnp.stack([ranks_of(world, params, asked.tokens) for params in who])
        drawn = member_samples(world, fixed.params, own, jax.random.key(2), 24 * number)
        whole = documents.document_log_probs(world.lm, fixed.params, asked.tokens, asked.mask)
        return asked, ranks, whole, ranks_of(world, fixed.params, drawn.tokens), drawn.mask

    asked, ranks, log_p0, measured, said = ask(fixed)
    valid = np.asarray(asked.valid)
    assert valid.all(axis=1).mean() > 0.9  # nearly all are pairs
    mask = np.asarray(asked.mask[..., -world.config.max_length :])
    likeliest = np.where(mask, ranks, 0).max(axis=-1)  # [M, B, 2], the worst token of a response
    assert (likeliest.min(axis=0)[valid] < 3).all()
    assert (likeliest.min(axis=0)[valid] == 2).any()  # and all three are said
    assert (np.where(said[..., -world.config.max_length :], measured, 0) > 2).any()
    np.testing.assert_allclose(asked.log_p0, log_p0, atol=1e-4)
