"""Online: which candidates are drawn, and of which pairs an arm may choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.online import process
from experiments.online.arms import ARMS, chooser
from experiments.online.members import member_params, member_samples
from shatter import documents, exploration
from tests.experiments.online.worlds import load, one_of


def ranks_of(world, params, tokens):
    """Returns how many tokens are likelier than each response token."""
    logits = world.lm.apply(params, tokens)[..., -world.config.max_length - 1 : -1, :]
    said = tokens[..., -world.config.max_length :, None]
    chosen = jnp.take_along_axis(logits, said, axis=-1)
    return jnp.sum(logits > chosen, axis=-1)


@pytest.mark.slow  # each compiles a learner
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


LENGTHS = jnp.array([3, 5, 3, 9, 5, 5, 7, 7])  # the last is an empty slot, so 7 and 9 are alone
VALID = jnp.arange(8) < 7


def pairs_of(arm, values, lengths, num_queries):
    """Returns pairs by an arm with and without the restriction to one length, for the same keys."""
    keys = jax.random.split(jax.random.key(1), num_queries)
    both = [chooser(ARMS[arm], is_tilt=False, match_lengths=match) for match in (True, False)]
    ask = lambda key: jnp.stack([one(key, values, values[0], VALID, lengths) for one in both])
    return np.asarray(jax.jit(jax.vmap(ask))(keys)).swapaxes(0, 1)


def test_a_random_pair_of_one_length():
    """The first of those that have another of their length, the second of these."""
    matched, free = pairs_of("passive", jnp.zeros((2, 8)), LENGTHS, 4000)
    expected = np.zeros((8, 8))
    for group in ([0, 2], [1, 4, 5]):
        for i in group:
            expected[i, [j for j in group if j != i]] = 1 / 5 / (len(group) - 1)
    found = np.zeros((8, 8))
    np.add.at(found, tuple(matched.T), 1 / 4000)
    np.testing.assert_allclose(found, expected, atol=4 * 0.4 / 4000**0.5)
    assert (found[expected == 0] == 0).all()
    assert (LENGTHS[free[:, 0]] != LENGTHS[free[:, 1]]).any()


@pytest.mark.slow
def test_the_best_pair_of_one_length():
    values = 3.0 * jax.random.normal(jax.random.key(2), (4, 8))
    (matched, *_), (free, *_) = pairs_of("infomax", values, LENGTHS, 20)
    gains = np.array(exploration.information_gain(values))
    assert gains[tuple(free)] == gains[:7, :7].max()
    assert LENGTHS[free[0]] != LENGTHS[free[1]]
    candidates = [(0, 2), (1, 4), (1, 5), (4, 5)]
    assert tuple(sorted(matched)) == max(candidates, key=lambda pair: gains[pair])
    same, _ = pairs_of("infomax", jnp.zeros((4, 8)), LENGTHS, 400)
    assert {tuple(sorted(pair)) for pair in same.tolist()} == set(candidates)  # all tie


@pytest.mark.parametrize("arm", ["passive", "infomax"])
def test_a_pair_is_free_where_no_two_have_one_length(arm):
    values = jax.random.normal(jax.random.key(2), (4, 8))
    matched, free = pairs_of(arm, values, jnp.array([1, 2, 3, 4, 5, 6, 7, 7]), 50)
    np.testing.assert_array_equal(matched, free)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["passive", "infomax"])
def test_queries_are_about_responses_of_one_length(folder, tmp_path, arm):
    shares = []
    for match in (True, False):
        changes = {"queries_per_round": 40, "max_length": 6, "match_lengths": match}
        world, fixed = load(folder, tmp_path, "open", num_candidates=6, **changes)

        @jax.jit
        def ask(fixed, world=world):
            learner = process.make_learner(world, fixed, ARMS[arm])
            state = learner.interaction.init(jax.random.key(0))
            return learner.interaction.propose(state, jax.random.key(1))

        asked = ask(fixed)
        is_pair = np.asarray(asked.valid.all(axis=1))  # not where all candidates are alike
        assert is_pair.mean() > 0.9
        lengths = np.asarray(asked.mask.sum(axis=-1))[is_pair]
        shares.append(np.mean(lengths[:, 0] == lengths[:, 1]))
    assert shares[0] > 0.95 and shares[1] < 0.9, shares
