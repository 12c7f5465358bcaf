"""The objectives and their metrics equal sums in numpy, comparison by comparison."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.cli.finetune.config import Config
from shatter.cli.finetune.objectives import OBJECTIVES, Scores, metrics

CONFIG = Config(beta=0.3, delta=2.0)
RNG = np.random.default_rng(0)
RANKS = np.array([[1, 2, 3], [2, 1, 1], [1, 1, 1], [2, -1, 1], [3, 3, 1]])
SHAPE = RANKS.shape


@pytest.fixture
def scores(float64: None) -> Scores:
    log_probs, ref, rewards = (jnp.asarray(RNG.normal(-20, 3, SHAPE)) for _ in range(3))
    return Scores(log_probs, jnp.asarray(RNG.integers(2, 9, SHAPE)), ref, rewards)


def ordered_pairs(ranks: np.ndarray) -> list[tuple[int, int]]:
    pairs = itertools.permutations(range(len(ranks)), 2)
    return [(i, j) for i, j in pairs if 0 <= ranks[i] < ranks[j]]


def softplus(x: float) -> float:
    return float(np.logaddexp(0.0, x))


PAIR_LOSSES = {
    "dpo": lambda u, d: softplus(-0.3 * d),
    "ipo": lambda u, d: (d - 1 / 0.6) ** 2,
    "slic": lambda u, d: max(0.0, 2.0 - u),
}


@pytest.mark.parametrize("name", list(PAIR_LOSSES))
def test_losses_of_pairs_are_means_over_ordered_pairs(scores: Scores, name: str):
    """A tie and an empty slot are in no pair; a comparison without one costs nothing."""
    found = OBJECTIVES[name].losses(CONFIG, scores, jnp.asarray(RANKS))
    own, ref = np.asarray(scores.log_probs), np.asarray(scores.ref_log_probs)
    for b, ranks in enumerate(RANKS):
        each = [
            PAIR_LOSSES[name](own[b, i] - own[b, j], own[b, i] - ref[b, i] - own[b, j] + ref[b, j])
            for i, j in ordered_pairs(ranks)
        ]
        np.testing.assert_allclose(found[b], np.mean(each) if each else 0.0, rtol=1e-12)
    assert not ordered_pairs(RANKS[2])


@pytest.mark.parametrize(
    ("name", "utility"),
    [*(("ilhf", form) for form in ("sum", "tilt", "mean", "ratio")), ("reward_model", "sum")],
)
def test_rankings_sum_over_the_orders_that_agree(scores: Scores, name: str, utility: str):
    config = dataclasses.replace(CONFIG, utility=utility, utility_scale=4.0)
    found = jax.jit(partial(OBJECTIVES[name].losses, config))(scores, RANKS)
    utilities = np.asarray(OBJECTIVES[name].utilities(config, scores))
    own, lengths = np.asarray(scores.log_probs), np.asarray(scores.lengths)
    tilt = own - np.asarray(scores.ref_log_probs)
    expected = {"sum": own, "tilt": tilt, "mean": 4.0 * own / lengths, "ratio": 4 * tilt / lengths}
    expected = expected[utility]
    np.testing.assert_allclose(utilities, scores.rewards if name == "reward_model" else expected)
    for b, ranks in enumerate(RANKS):
        shown = np.flatnonzero(ranks >= 0)
        total = 0.0
        for order in itertools.permutations(shown):
            if all(ranks[i] <= ranks[j] for i, j in itertools.pairwise(order)):
                strength = np.exp(utilities[b, list(order)])
                total += np.prod([s / strength[k:].sum() for k, s in enumerate(strength)])
        np.testing.assert_allclose(found[b], -np.log(total), rtol=1e-9, atol=1e-12)


def test_sft_reads_the_best_completions(scores: Scores):
    found = np.asarray(OBJECTIVES["sft"].losses(CONFIG, scores, jnp.asarray(RANKS)))
    a_token = -np.asarray(scores.log_probs) / np.asarray(scores.lengths)
    best = [[0], [1, 2], [0, 1, 2], [2], [2]]
    np.testing.assert_allclose(found, [a_token[b, k].mean() for b, k in enumerate(best)])


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradients_are_finite_where_slots_are_empty(scores: Scores, name: str):
    empty = jnp.asarray(np.full(SHAPE, -1))
    loss = lambda s: jnp.sum(OBJECTIVES[name].losses(CONFIG, s, empty))
    value, gradient = jax.jit(jax.value_and_grad(loss, allow_int=True))(scores)
    assert value == 0
    for leaf in (gradient.log_probs, gradient.rewards):
        np.testing.assert_array_equal(leaf, 0.0)


def test_metrics_of_comparisons_with_a_best_and_a_worst(scores: Scores):
    weight = np.array([1.0, 2.0, 5.0, 3.0, 0.0])
    found = metrics(CONFIG, scores, jnp.asarray(RANKS), jnp.asarray(weight))
    own = np.asarray(scores.log_probs)
    rewards = 0.3 * (own - np.asarray(scores.ref_log_probs))
    sides = {0: ([0], [2]), 1: ([1, 2], [0]), 3: ([2], [0])}  # of those that weigh something
    share = weight[list(sides)] / 6.0
    mean = lambda values: float(share @ np.asarray(values))
    chosen = [rewards[b, best].mean() for b, (best, _) in sides.items()]
    rejected = [rewards[b, worst].mean() for b, (_, worst) in sides.items()]
    expected = {
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/margins": mean(np.subtract(chosen, rejected)),
        "rewards/accuracies": mean(np.greater(chosen, rejected)),
        "logps/chosen": mean([own[b, best].mean() for b, (best, _) in sides.items()]),
        "logps/rejected": mean([own[b, worst].mean() for b, (_, worst) in sides.items()]),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        total, weights = found[name]
        assert weights == 6.0
        np.testing.assert_allclose(total / weights, value, rtol=1e-12, err_msg=name)


def test_ties_alone_have_no_metrics(scores: Scores):
    """A mean over nothing has weight 0, by which it is left out later."""
    found = metrics(CONFIG, scores, jnp.ones(SHAPE, int), jnp.ones(len(RANKS)))
    assert all(mean.weight == 0 == mean.total for mean in found.values())


def test_a_model_that_is_its_reference_has_margins_and_accuracies_of_zero(scores: Scores):
    """That holds too if the log-probs differ by the rounding of their sums."""
    same = scores._replace(ref_log_probs=scores.log_probs + 1e-5)
    found = metrics(CONFIG, same, jnp.asarray(RANKS), jnp.ones(len(RANKS)))
    assert abs(found["rewards/margins"].total) < 1e-12
    assert found["rewards/accuracies"].total == 0.0
    slightly = same._replace(ref_log_probs=scores.log_probs - jnp.asarray([[1e-5, 2e-5, 0.0]]))
    found = metrics(CONFIG, slightly, jnp.asarray(RANKS), jnp.ones(5))
    assert found["rewards/accuracies"].total == 0.0
