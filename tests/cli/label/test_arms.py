"""What `v_optimal` is told about a pool, by an independent computation over distinct texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from shatter.cli.label.arms import compiled_arm, law_of_prompts, num_candidates
from shatter.cli.label.config import ProposeConfig
from shatter.exploration.beliefs import shrinkage

PROMPT_IDS = np.array([0] * 3 + [1] * 7)
# Texts 0 and 3 are in more candidates than the others.
PAIRS = [(0, 1), (0, 2), (3, 4), (3, 5), (3, 6), (3, 7), (3, 8), (3, 9), (4, 5), (6, 7), (8, 9)]
ITEMS = np.array([*PAIRS, (-1, -1)])
UTILITIES = ("sum", "tilt")


def log_probs_of(seed: int) -> np.ndarray:
    """Returns the log-probs `[M, 10]` of four members, very long texts among them, nats."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, 10)) + rng.uniform(-60, -15, size=10)


def ask(members: np.ndarray, num_queries: int, utility: str) -> list[int]:
    config = ProposeConfig(arm="v_optimal", ensemble="adapters", utility=utility)
    arm = compiled_arm(config, ITEMS, PROMPT_IDS)
    valid = jnp.asarray(ITEMS >= 0)
    log_probs = jnp.asarray(members[:, np.maximum(ITEMS, 0)], jnp.float32)
    chosen = arm(jax.random.key(0), log_probs, valid=valid, num_queries=num_queries)
    return [int(q) for q in chosen]


def expected(members: np.ndarray, num_queries: int) -> list[int]:
    """Returns the pairs that lower the variance within the prompts most, in turn.

    It knows every text once.
    """
    weights = np.where(PROMPT_IDS == 0, 1 / 6, 1 / 14)
    centred = members.astype(np.float64)
    for prompt in (0, 1):
        own = prompt == PROMPT_IDS
        centred[:, own] -= centred[:, own].mean(axis=1, keepdims=True)
    raw = np.cov(centred.T)
    left = np.where(np.eye(10), raw, (1 - shrinkage(4)) * raw)
    first, second = np.array(PAIRS).T
    gaps = (centred[:, first] - centred[:, second]).mean(axis=0)
    asked: list[int] = []
    for _ in range(num_queries):
        spread = left[first, first] + left[second, second] - 2 * left[first, second]
        squares = 1 + np.pi / 8 * spread
        p = expit(gaps / np.sqrt(squares))
        columns = (left[:, first] - left[:, second]) * np.sqrt(p * (1 - p) / squares)
        drops = weights @ np.square(columns)
        drops[asked] = -np.inf
        asked.append(int(drops.argmax()))
        left = left - np.outer(columns[:, asked[-1]], columns[:, asked[-1]])
    return asked


def test_every_prompt_has_the_same_weight_and_a_text_with_copies_no_more_than_others():
    weights = np.exp(law_of_prompts(ITEMS, PROMPT_IDS))
    np.testing.assert_array_equal(weights[-1], 0.0)
    by_text = np.bincount(ITEMS[:-1].ravel(), weights[:-1].ravel())
    np.testing.assert_allclose(by_text, [1 / 3] * 3 + [1 / 7] * 7)


def test_the_weights_of_a_part_of_the_pool_are_those_of_its_texts():
    weights = np.exp(law_of_prompts(np.array([[0, 1], [0, 2], [3, 6]]), PROMPT_IDS))
    np.testing.assert_allclose(weights, [[1 / 6, 1 / 3], [1 / 6, 1 / 3], [1 / 2, 1 / 2]])


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("seed", range(12))
def test_copies_of_a_text_are_one_document(seed, utility):
    members = log_probs_of(seed)
    assert ask(members, 6, utility) == expected(members, 6)


@pytest.mark.parametrize("utility", UTILITIES)
def test_how_likely_a_prompt_s_texts_are_together_tells_nothing(utility):
    members = log_probs_of(0)
    shifts = np.random.default_rng(1).normal(-30, 10, size=(4, 2))
    asked = ask(members, 5, utility)
    assert len(set(asked)) == 5 and len(PAIRS) not in asked
    assert ask(members + shifts[:, PROMPT_IDS], 5, utility) == asked


def test_v_optimal_draws_as_many_candidates_as_its_covariance_may_hold():
    num = lambda arm="v_optimal", **flags: num_candidates(ProposeConfig(arm=arm, **flags))
    assert [num(num_candidates=c) for c in (40, 2000)] == [40, 1000]
    assert num(num_candidates=2000, num_responses=4) == 500
    assert num(num_candidates=2000, num_queries=1500) == 1500
    assert num(num_candidates=2000, arm="joint_infomax") == 2000
    assert num() == ProposeConfig().num_candidates  # so that the default is what is used
