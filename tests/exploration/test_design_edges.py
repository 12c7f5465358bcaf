"""V-optimal design on bad input: uniform among what is valid, or an error; never a NaN score."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter.exploration import (
    Belief,
    linear_belief,
    v_optimal,
    v_optimal_batch,
    v_optimal_choices,
    v_optimal_queries,
)
from shatter.exploration.v_optimality import law_belief, law_weights, pair_drops

T = 6
VALID = np.array([1, 1, 0, 1, 1, 1], bool)
PAIRS = np.array([*combinations(np.flatnonzero(VALID), 2)])
RNG = np.random.default_rng(0)
LOG_PROBS = RNG.normal(size=(4, T)).astype(np.float32)
FEATURES = RNG.normal(size=(T, 3)).astype(np.float32)
NUM_KEYS = 3_000


def ask(arm, *arguments, seed=0, **options):
    return arm(jax.random.key(seed), *arguments, **options)


def assert_uniform(counts):
    shares = np.asarray(counts) / NUM_KEYS
    even = 1 / len(shares)
    assert np.isclose(shares.sum(), 1)
    assert np.all(np.abs(shares - even) < 4.5 * np.sqrt(even * (1 - even) / NUM_KEYS))


def constant(mean, covariance):
    return Belief(jnp.full(T, mean, jnp.float32), jnp.full((T, T), covariance, jnp.float32))


TELL_NOTHING = {
    "one member": (LOG_PROBS[:1], None),
    "members that agree up to a shift": (LOG_PROBS[:1] + np.float32([[0], [40], [-7]]), None),
    "no variance": (constant(0.3, 0.0), None),
    "candidates that are equal": (constant(-2.0, 1.7), None),
    "no law": (LOG_PROBS, np.full(T, -np.inf, np.float32)),
    "an unknown law": (LOG_PROBS, np.full(T, np.nan, np.float32)),
    "nothing possible": (np.full((4, T), -np.inf, np.float32), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TELL_NOTHING)
def test_where_nothing_is_told_the_pair_is_uniform_among_the_valid(case):
    scores, law = TELL_NOTHING[case]
    rows = jnp.arange(T)[None]

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def draw(key, scores):
        one, other = jax.random.split(key)
        pair = v_optimal(one, scores, valid=VALID, law=law)
        return pair, v_optimal_batch(other, scores, rows, valid=VALID[None], law=law)[0]

    keys = jax.random.split(jax.random.key(1), NUM_KEYS)
    for pairs in draw(keys, scores):
        found = np.sort(pairs, axis=1)
        assert_uniform([np.sum(np.all(found == pair, axis=1)) for pair in PAIRS])


@pytest.mark.slow
@pytest.mark.parametrize("arm", [v_optimal_queries, v_optimal_choices])
@pytest.mark.parametrize("case", ["one member", "candidates that are equal", "nothing possible"])
def test_where_nothing_is_told_the_query_is_uniform_among_those_that_can_be_asked(arm, case):
    scores = {
        "one member": RNG.normal(size=(1, 4, 2)).astype(np.float32),
        "candidates that are equal": Belief(jnp.zeros((4, 2)), jnp.full((4, 2, 4, 2), 1.7)),
        "nothing possible": np.full((3, 4, 2), -np.inf, np.float32),
    }[case]
    valid = np.array([[1, 1], [0, 1], [1, 1], [1, 1]], bool)
    choose = jax.vmap(partial(arm, valid=valid, num_queries=1), in_axes=(0, None))
    keys = jax.random.split(jax.random.key(2), NUM_KEYS)
    counts = np.bincount(np.asarray(jax.jit(choose)(keys, scores))[:, 0], minlength=4)
    assert counts[1] == 0
    assert_uniform(counts[[0, 2, 3]])


EDGES = np.float32([0, 1, -np.inf, np.inf, np.nan, -1e30, 1e30, -1e5, 1e5, -88, -6e4, -1e-30])


def test_no_score_is_nan():
    tables = np.random.default_rng(3).choice(EDGES, size=(500, 3, T))
    covariances = np.random.default_rng(4).choice(EDGES, size=(500, T, T))
    covariances[:, np.arange(T), np.arange(T)] = np.abs(covariances.diagonal(axis1=1, axis2=2))

    @jax.jit
    @jax.vmap
    def drops(table, covariance):
        members = law_belief(table, jnp.ones(T, bool), law_weights(table[0]))
        belief = Belief(table[0], covariance)
        given = law_belief(belief, jnp.ones(T, bool), law_weights(table[1]))
        of = lambda belief, law: pair_drops(belief, law_weights(law), jnp.arange(T))
        return of(members, table[0]), of(given, table[1])

    for scores in drops(tables, covariances):
        assert np.isfinite(scores).all()
        assert np.min(scores) >= 0.0


@pytest.mark.slow
def test_a_singular_covariance_is_a_covariance(float64):
    """Scores along one direction alone: the far ends of the line tell most."""
    position = np.array([-3.0, 0.4, 5.0, 0.1, 3.5, 0.2])
    belief = linear_belief(jnp.zeros(T), jnp.asarray(position)[:, None], jnp.eye(1))
    assert np.linalg.matrix_rank(belief.covariance) == 1
    pair = jax.jit(partial(ask, v_optimal, valid=VALID))(belief)
    rates = [abs(np.subtract(*position[pair])) for pair in PAIRS]
    rates = [gap**2 / (1 + np.pi / 8 * gap**2) for gap in rates]
    assert {*pair.tolist()} == {*PAIRS[np.argmax(rates)].tolist()} == {0, 4}


@pytest.mark.slow
def test_what_is_not_valid_and_not_weighted_may_be_anything():
    mean = LOG_PROBS.mean(axis=0)
    covariance = FEATURES @ FEATURES.T
    garbage = np.where(VALID, 0, np.float32(np.nan))
    with np.errstate(invalid="ignore"):
        shown = Belief(mean + garbage, covariance + garbage[None] + garbage[:, None])
    law = np.where(VALID, LOG_PROBS[1], np.nan)
    choose = jax.jit(partial(ask, v_optimal, valid=VALID, num_responses=4))
    by_law = jax.jit(partial(ask, v_optimal, valid=VALID, num_responses=4, law=law))
    for whole, holes in [(Belief(mean, covariance), shown), (LOG_PROBS, LOG_PROBS + garbage)]:
        np.testing.assert_array_equal(choose(whole), choose(holes))
        np.testing.assert_array_equal(by_law(whole), by_law(holes))
        assert VALID[choose(holes)].all()


@pytest.mark.slow
def test_half_precision_is_that_of_the_same_numbers():
    half = Belief(
        jnp.asarray(LOG_PROBS[0], jnp.float16),
        jnp.asarray(FEATURES @ FEATURES.T * 100, jnp.float16),
    )
    full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    for arm, options in [
        (v_optimal, {"num_responses": 4}),
        (v_optimal_batch, {"candidates": jnp.array([[0, 1, 2], [3, 4, 5]])}),
    ]:
        choose = jax.jit(partial(ask, arm, **options))
        np.testing.assert_array_equal(choose(half), choose(full))
    pool = lambda belief: Belief(belief.mean.reshape(3, 2), belief.covariance.reshape(3, 2, 3, 2))
    for arm in (v_optimal_queries, v_optimal_choices):
        choose = jax.jit(partial(ask, arm, num_queries=3))
        np.testing.assert_array_equal(choose(pool(half)), choose(pool(full)))


@pytest.mark.slow
def test_what_little_is_left_to_know_is_still_ranked():
    """Drops go with the square of the covariances; ties must not depend on their size."""
    choose = jax.jit(jax.vmap(lambda belief: ask(v_optimal, belief)))
    features = np.random.default_rng(5).normal(size=(200, T, 3)).astype(np.float32)
    scale = np.float32([1e-2, 1e-5])[:, None, None, None]  # of the covariances
    covariance = np.einsum("nip,njp->nij", features, features)
    first, last = (
        np.sort(choose(Belief(jnp.zeros((200, T)), jnp.asarray(size * covariance))), axis=1)
        for size in scale[:, 0]
    )
    assert np.mean(np.all(first == last, axis=1)) > 0.97  # s^2 is not quite 1


@pytest.mark.slow
def test_a_member_that_excludes_a_text_and_a_text_that_all_exclude():
    log_probs = LOG_PROBS.copy()
    log_probs[:, 4] = -np.inf
    log_probs[:, 5] = -1e30
    log_probs[1, 0] = -np.inf
    order = jax.jit(partial(ask, v_optimal, num_responses=6))(log_probs)
    assert {*order[:4].tolist()} == {0, 1, 2, 3}


def checked(arm, *arguments, **options):
    run = jax.jit(checkify.checkify(partial(ask, arm, **options)))
    error, found = run(*arguments)
    return error.get(), found


@pytest.mark.slow
def test_errors_with_the_values_that_were_found():
    belief = Belief(jnp.zeros(T), jnp.asarray(FEATURES @ FEATURES.T))
    assert checked(v_optimal, belief)[0] is None
    unknown = belief._replace(covariance=belief.covariance.at[0, 1].set(jnp.nan))
    assert "covariance holds what is not finite" in checked(v_optimal, unknown)[0]
    candidates = jnp.array([[0, 1, 2], [3, 4, 5]])
    valid = jnp.array([[True, True, True], [False, True, False]])
    error, found = checked(v_optimal_batch, belief, candidates, valid=valid)
    assert "2 responses are wanted of every row, found 1 valid" in error
    np.testing.assert_array_equal(found[1], [1, 1])
    with pytest.raises(ValueError, match="from 2 to the 3 candidates of a query, found 4"):
        ask(v_optimal_batch, belief, candidates, num_responses=4)
    with pytest.raises(AssertionError, match="shape"):
        ask(v_optimal, belief._replace(covariance=jnp.zeros((T, T - 1))))
    with pytest.raises(AssertionError, match="shape"):
        ask(v_optimal, belief, law=jnp.zeros(T - 1))
    pool = Belief(jnp.zeros((3, 2)), jnp.zeros((6, 6)))
    for arm in (v_optimal_queries, v_optimal_choices):
        with pytest.raises(AssertionError, match="shape"):
            ask(arm, pool, num_queries=1)
        with pytest.raises(ValueError, match="from 1 to the pool's 3, found 4"):
            ask(arm, pool, num_queries=4)
    with pytest.raises(AssertionError, match="shape"):
        linear_belief(jnp.zeros(T), jnp.asarray(FEATURES), jnp.eye(4))
