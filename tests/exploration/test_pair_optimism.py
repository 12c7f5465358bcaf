"""Bounds, optimistic gaps and regret against information: the best by enumeration."""

from functools import partial
from itertools import combinations

import jax
import numpy as np
import pytest

from shatter.exploration import (
    delta_ucb,
    delta_ucb_queries,
    information_directed,
    information_directed_queries,
    ucb,
)

TABLES = np.random.default_rng(0).normal(scale=2.0, size=(40, 5, 6))
VALID = np.array([True, True, False, True, True, True])
PAIRS = np.array([*combinations(np.flatnonzero(VALID), 2)])
POOL = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 1, 0]], bool)


def laws_of(tables, valid):
    weights = np.exp(tables) * valid
    axes = tuple(range(1, weights.ndim))
    with np.errstate(divide="ignore"):
        return np.log(weights / weights.sum(axis=axes, keepdims=True))


def entropy(p):
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def gain(utilities):
    """Information gain about the member from a choice by `[M, K]` utilities."""
    p = np.exp(utilities) / np.exp(utilities).sum(axis=1, keepdims=True)
    return entropy(p.mean(axis=0)) - entropy(p).mean()


def regret(table, valid, query):
    """From one member to the next: the best of all, less the mean of the query."""
    best = np.max(np.where(valid, table, -np.inf), axis=tuple(range(1, table.ndim)))
    return np.mean(best - table[(slice(None), *query)].mean(axis=1))


def lifted(arm, tables=TABLES, **options):
    keys = jax.random.split(jax.random.key(0), len(tables))
    return np.asarray(jax.jit(jax.vmap(partial(arm, **options)))(keys, tables))


@pytest.mark.parametrize("coefficient", [0.0, 1.0, 5.0])
def test_the_highest_bounds_of_members_normalised_over_the_candidates(coefficient, float64):
    responses = lifted(ucb, valid=VALID, num_responses=3, coefficient=coefficient)
    for table, found in zip(TABLES, responses, strict=True):
        laws = laws_of(table, VALID)[:, VALID]
        bounds = laws.mean(axis=0) + coefficient * laws.std(axis=0)
        best = np.argsort(-bounds)[:3]
        np.testing.assert_array_equal(found, np.flatnonzero(VALID)[best])


def grown(scores, num_responses):
    """The best pair of `{(i, j): score}`, and then the candidate of the largest sum."""
    chosen = set(max(scores, key=scores.get))
    while len(chosen) < num_responses:
        rest = {*np.flatnonzero(VALID).tolist()} - chosen
        total = lambda k: sum(scores[min(i, k), max(i, k)] for i in chosen)
        chosen.add(max(rest, key=total))
    return chosen


def gaps_of(table, coefficient):
    """The upper bound of the one less the lower bound of the other, in either order."""
    laws = laws_of(table, VALID)
    mean, std = laws[:, VALID].mean(axis=0), laws[:, VALID].std(axis=0)
    upper, lower = (
        dict(zip(np.flatnonzero(VALID), mean + sign * coefficient * std, strict=True))
        for sign in (1, -1)
    )
    return {(i, j): max(upper[i] - lower[j], upper[j] - lower[i]) for i, j in PAIRS.tolist()}


@pytest.mark.parametrize(  # at 0 the third candidate is tied
    "coefficient", [0.3, *(pytest.param(c, marks=pytest.mark.slow) for c in (1.0, 5.0))]
)
def test_the_largest_optimistic_gap(coefficient, float64):
    responses = lifted(delta_ucb, valid=VALID, num_responses=3, coefficient=coefficient)
    for table, found in zip(TABLES, responses, strict=True):
        gaps = gaps_of(table, coefficient)
        assert {*found[:2].tolist()} == set(max(gaps, key=gaps.get))
        assert {*found.tolist()} == grown(gaps, 3)


def test_the_least_squared_regret_a_nat(float64):
    responses = lifted(information_directed, valid=VALID, num_responses=3)
    greedy = 0
    for table, found in zip(TABLES, responses, strict=True):
        rates = {}
        for pair in PAIRS.tolist():
            rates[tuple(pair)] = gain(table[:, pair]) / regret(table, VALID, (pair,)) ** 2
        assert {*found[:2].tolist()} == set(max(rates, key=rates.get))
        assert {*found.tolist()} == grown(rates, 3)
        gains = {tuple(pair): gain(table[:, pair]) for pair in PAIRS.tolist()}
        greedy += max(gains, key=gains.get) == max(rates, key=rates.get)
    assert 0 < greedy < 40  # not the same as the largest gain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pairs", "queries"),
    [(delta_ucb, delta_ucb_queries), (information_directed, information_directed_queries)],
)
def test_pairs_are_queries_of_the_pool_of_all_pairs(pairs, queries, float64):
    by_pair = lifted(pairs, valid=VALID)
    by_query = lifted(queries, TABLES[..., PAIRS], num_queries=1)
    chosen = PAIRS[by_query[:, 0]]
    np.testing.assert_array_equal(np.sort(by_pair, axis=1), np.sort(chosen, axis=1))


def queries_of(valid):
    return [(q, (np.full(slots.sum(), q), np.flatnonzero(slots))) for q, slots in enumerate(valid)]


POOLS = np.random.default_rng(1).normal(scale=1.5, size=(20, 5, *POOL.shape))


@pytest.mark.slow
@pytest.mark.parametrize("arm", [delta_ucb_queries, information_directed_queries])
def test_the_best_queries_of_a_pool_with_empty_slots(arm, float64):
    shifted = np.where(POOL, POOLS, np.nan) + np.array([9.0, -4, 0, 2, 1])[:, None, None]
    found = lifted(arm, shifted, valid=POOL, num_queries=3)
    for table, batch in zip(POOLS, found, strict=True):
        scores = np.full(len(POOL), -1.0)
        laws = laws_of(table, POOL)
        for q, query in queries_of(POOL):
            own = (slice(None), *query)
            if len(query[1]) < 2:
                continue
            if arm is delta_ucb_queries:
                mean, std = laws[own].mean(axis=0), laws[own].std(axis=0)
                upper, lower = mean + std, mean - std
                orders = [(i, j) for i in range(len(mean)) for j in range(len(mean)) if i != j]
                scores[q] = max(upper[i] - lower[j] for i, j in orders)
            else:
                scores[q] = gain(table[own]) / regret(table, POOL, query) ** 2
        np.testing.assert_array_equal(batch, np.argsort(-scores)[:3])


@pytest.mark.slow
def test_nothing_to_learn_is_left_to_the_key():
    """One member, and members that agree but for rounding, give a uniform pair or query."""
    agree = np.float32(TABLES[0, :1] + np.array([[0.0], [7.0], [40.0]]))
    for table in (agree[:1], agree):
        keys = jax.random.split(jax.random.key(1), 3_000)
        drawn = jax.jit(jax.vmap(partial(information_directed, valid=VALID), in_axes=(0, None)))
        pairs = np.sort(drawn(keys, table), axis=1)
        counts = np.array([np.sum(np.all(pairs == pair, axis=1)) for pair in PAIRS])
        assert counts.sum() == 3_000
        assert np.all(np.abs(counts / 3_000 - 0.1) < 4.5 * np.sqrt(0.09 / 3_000))
        choose = partial(information_directed_queries, num_queries=1)
        pool = jax.jit(jax.vmap(choose, in_axes=(0, None)))
        queries = np.asarray(pool(jax.random.clone(keys), table[:, PAIRS]))[:, 0]
        shares = np.bincount(queries, minlength=10) / 3_000
        assert np.all(np.abs(shares - 0.1) < 4.5 * np.sqrt(0.09 / 3_000))
