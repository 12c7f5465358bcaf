"""V-optimal design against enumeration and conditioning, in float64.

The joint law of the answer and the scores is written out: members are equally likely hypotheses,
and the probabilities of an answer are linear in their scores, with the slope of the design. The
best linear predictor from the answer is then fitted by least squares over all (member, answer).
"""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.exploration import (
    Belief,
    linear_belief,
    members_belief,
    shrinkage,
    v_optimal,
    v_optimal_batch,
    v_optimal_choices,
    v_optimal_queries,
)
from shatter.exploration.v_optimality import (
    law_belief,
    law_weights,
    learn,
    pair_drops,
    query_contrasts,
)

M, T = 5, 6
RNG = np.random.default_rng(0)
SCORES = RNG.normal(scale=0.4, size=(M, T)) + RNG.normal(size=T)
WEIGHTS = RNG.dirichlet(np.ones(T))
drops_of = jax.jit(pair_drops)


def ask(arm, *arguments, **options):
    """An arm with a key of its own."""
    return arm(jax.random.key(0), *arguments, **options)


def softmax(values):
    weights = np.exp(values - np.max(values))
    return weights / weights.sum()


def answer(mean, covariance, slots):
    """The answer to a query: its probabilities p, diag(p) - p p', and s."""
    inside = covariance[np.ix_(slots, slots)]
    spread = np.diag(inside)[:, None] + np.diag(inside)[None, :] - 2 * inside
    scale = np.sqrt(1 + np.pi / 8 * spread.max())
    p = softmax(mean[slots] / scale)
    return p, np.diag(p) - np.outer(p, p), scale


def told(mean, covariance, slots):
    """Covariance that an answer takes away: Schur's complement of the answer's covariance."""
    _, outcome, scale = answer(mean, covariance, slots)
    shared = covariance[:, slots] @ outcome / scale  # of the scores and the answer
    return shared @ np.linalg.pinv(outcome) @ shared.T


def centred(covariance, weights):
    """The covariance of scores relative to their weighted mean."""
    around = np.eye(len(weights)) - np.broadcast_to(weights, covariance.shape)
    return around @ covariance @ around.T


def enumerated_drop(scores, weights, slots):
    """Expected drop of the weighted squared error of the best linear predictor, enumerated."""
    mean, covariance = scores.mean(axis=0), np.cov(scores.T, bias=True)
    p, outcome, scale = answer(mean, covariance, slots)
    chances = p + (scores - mean)[:, slots] @ outcome / scale  # [M, K], linear in the scores
    assert chances.min() > 0
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    joint = chances / len(scores)
    answers = np.tile(np.eye(len(slots)), (len(scores), 1))
    targets = np.repeat(scores, len(slots), axis=0)
    root = np.sqrt(joint.ravel())[:, None]
    fit = np.linalg.lstsq(root * answers, root * targets, rcond=None)[0]
    left = np.sum(joint.ravel()[:, None] * (targets - answers @ fit) ** 2, axis=0)
    return weights @ (scores.var(axis=0) - left)


def test_the_score_of_a_pair_is_the_expected_drop_of_the_weighted_variance(float64):
    belief = Belief(jnp.asarray(SCORES.mean(axis=0)), jnp.asarray(np.cov(SCORES.T, bias=True)))
    found = np.asarray(drops_of(belief, WEIGHTS, jnp.arange(T)))
    for pair in combinations(range(T), 2):
        expected = enumerated_drop(SCORES, WEIGHTS, list(pair))
        np.testing.assert_allclose(found[pair], expected, rtol=1e-10)
        np.testing.assert_allclose(found[pair], found[pair[::-1]], rtol=1e-12)
    np.testing.assert_array_equal(np.diag(found), 0.0)
    # By the formula of the documentation, for candidates that are some of the texts.
    mean, covariance = map(np.asarray, belief)
    i, j = 4, 1
    gap = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
    p = 1 / (1 + np.exp(-(mean[i] - mean[j]) / np.sqrt(1 + np.pi / 8 * gap)))
    rate = p * (1 - p) / (1 + np.pi / 8 * gap)
    expected = rate * WEIGHTS @ (covariance[:, i] - covariance[:, j]) ** 2
    some = drops_of(belief, WEIGHTS, jnp.array([3, j, i]))
    np.testing.assert_allclose(some[2, 1], expected, rtol=1e-12)


@pytest.mark.parametrize("slots", [[0, 3], [1, 4, 5], [0, 1, 2, 4]])
def test_contrasts_take_what_the_answer_teaches_and_leave_the_conditioned_covariance(
    slots, float64
):
    mean, covariance = SCORES.mean(axis=0), np.cov(SCORES.T, bias=True)

    @jax.jit
    def run(mean, covariance):
        own = covariance[jnp.array(slots)[:, None], jnp.array(slots)[None, :]]
        contrasts, square = query_contrasts(mean[jnp.array(slots)], own, jnp.ones(len(slots), bool))
        columns = covariance[:, jnp.array(slots)] @ contrasts.T
        left = learn(covariance, jnp.array(slots), contrasts)
        return left, square, WEIGHTS @ jnp.sum(columns**2, axis=1)

    left, square, drop = run(jnp.asarray(mean), jnp.asarray(covariance))
    np.testing.assert_allclose(left, covariance - told(mean, covariance, slots), atol=1e-14)
    np.testing.assert_allclose(square, answer(mean, covariance, slots)[2] ** 2, rtol=1e-12)
    np.testing.assert_allclose(drop, enumerated_drop(SCORES, WEIGHTS, slots), rtol=1e-10)
    lost = np.trace(np.diag(WEIGHTS) @ (covariance - np.asarray(left)))
    np.testing.assert_allclose(drop, lost, rtol=1e-11)
    assert np.linalg.eigvalsh(left).min() > -1e-14


def test_an_empty_slot_changes_no_contrast(float64):
    mean, covariance = SCORES.mean(axis=0)[:4], np.cov(SCORES.T[:4])
    contrasts = jax.jit(query_contrasts)
    for valid in ([1, 1, 0, 1], [0, 1, 1, 0]):
        valid = np.array(valid, bool)
        rows, square = contrasts(np.where(valid, mean, np.nan), covariance, valid)
        some, of_some = contrasts(mean[valid], covariance[np.ix_(valid, valid)], valid[valid])
        product = np.asarray(rows.T @ rows)
        np.testing.assert_allclose(product[np.ix_(valid, valid)], some.T @ some, atol=1e-15)
        np.testing.assert_allclose(square, of_some, rtol=1e-13)
        assert not product[~valid].any()
    assert not np.any(contrasts(mean, covariance, np.arange(4) == 2)[0])


def members_by_hand(scores, weights):
    """Mean and shrunk covariance of members relative to their weighted mean."""
    known = scores - (scores @ weights)[:, None]
    covariance = np.cov(known.T)
    keep = 1 - 16 / (16 + len(scores))
    return known.mean(axis=0), np.where(np.eye(covariance.shape[0]), 1, keep) * covariance


def chosen_in_turn(mean, covariance, weights, rows, num_responses):
    """Queries by the rule of the documentation, the covariance conditioned afresh after each."""
    queries = []
    for row in rows:
        scores = np.zeros((len(row),) * 2)
        for i, j in combinations(range(len(row)), 2):
            scores[i, j] = weights @ np.diag(told(mean, covariance, [row[i], row[j]]))
        scores += scores.T
        chosen = list(np.unravel_index(scores.argmax(), scores.shape))
        while len(chosen) < num_responses:
            sums = scores[chosen].sum(axis=0)
            sums[chosen] = -1
            chosen.append(sums.argmax())
        queries.append(set(map(int, chosen)))
        covariance = covariance - told(mean, covariance, row[chosen])
    return queries


def as_sets(queries):
    return [set(query) for query in np.asarray(queries).tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("num_responses", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_batch_is_chosen_one_by_one_from_conditioned_covariances(num_responses, float64):
    rng = np.random.default_rng(1)
    texts = 9
    scores = rng.normal(size=(12, M, texts)) + 0.7 * rng.normal(size=(12, 1, texts))
    candidates = np.stack([rng.permutation(texts)[:5] for _ in range(4)])
    log_law = rng.normal(size=texts)
    weights = softmax(log_law)
    choose = jax.jit(
        jax.vmap(
            lambda scores: ask(
                v_optimal_batch,
                scores,
                jnp.asarray(candidates),
                num_responses=num_responses,
                law=log_law + 3,
            )
        )
    )
    alone = jax.jit(
        jax.vmap(
            lambda scores: ask(
                v_optimal,
                scores,
                valid=jnp.isin(jnp.arange(texts), candidates[0]),
                law=jnp.asarray(log_law),
                num_responses=num_responses,
            )
        )
    )
    batches, firsts = choose(scores), alone(scores)
    independent = 0
    for members, batch, first in zip(scores, batches, firsts, strict=True):
        by_hand = members_by_hand(members, weights)
        expected = chosen_in_turn(*by_hand, weights, candidates, num_responses)
        assert as_sets(batch) == expected
        assert {*candidates[0][list(expected[0])].tolist()} == {*np.asarray(first).tolist()}
        without = [
            chosen_in_turn(*by_hand, weights, candidates[n : n + 1], num_responses)[0]
            for n in range(4)
        ]
        independent += without != expected
    assert independent > 3  # what was asked before does matter


@pytest.mark.slow
def test_a_belief_is_used_as_it_is(float64):
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(8, 3, 7))
    covariance, mean = factor.swapaxes(1, 2) @ factor, rng.normal(size=(8, 7))
    candidates = np.array([[0, 1, 2, 3], [3, 4, 5, 6], [0, 2, 4, 6]])
    choose = jax.jit(jax.vmap(lambda belief: ask(v_optimal_batch, belief, jnp.asarray(candidates))))
    batches = choose(Belief(jnp.asarray(mean), jnp.asarray(covariance)))
    for mu, C, batch in zip(mean, covariance, batches, strict=True):
        weights = softmax(mu)  # the law is what the mean predicts
        expected = chosen_in_turn(mu, centred(C, weights), weights, candidates, 2)
        assert as_sets(batch) == expected


def pool_in_turn(mean, covariance, valid, score, num_queries):
    """Queries of a pool chosen by `(mean, covariance, slots) -> float`, conditioned after each."""
    slots = np.arange(valid.size).reshape(valid.shape)
    free, chosen = valid.sum(axis=1) >= 2, []
    for _ in range(num_queries):
        scores = [
            score(mean, covariance, slots[q][valid[q]]) if free[q] else -1
            for q in range(len(valid))
        ]
        chosen.append(int(np.argmax(scores)))
        free[chosen[-1]] = False
        covariance = covariance - told(mean, covariance, slots[chosen[-1]][valid[chosen[-1]]])
    return chosen


VALID = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 1, 0]], bool)


def random_pool(seed, valid, num_pools=8):
    """Beliefs about a pool whose empty slots hold garbage."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(num_pools, 4, valid.size))
    covariance = factor.swapaxes(1, 2) @ factor
    mean = rng.normal(size=(num_pools, valid.size))
    both = valid.ravel()[:, None] & valid.ravel()[None, :]
    shown = np.where(both, covariance, np.nan).reshape(num_pools, *valid.shape * 2)
    shown_mean = np.where(valid, mean.reshape(num_pools, *valid.shape), np.nan)
    return mean, covariance, Belief(jnp.asarray(shown_mean), jnp.asarray(shown))


@pytest.mark.slow
def test_queries_for_the_law_are_chosen_from_conditioned_covariances(float64):
    mean, covariance, beliefs = random_pool(3, VALID)
    choose = jax.jit(jax.vmap(partial(ask, v_optimal_queries, valid=VALID, num_queries=4)))
    for mu, C, found in zip(mean, covariance, choose(beliefs), strict=True):
        weights = softmax(np.where(VALID.ravel(), mu, -np.inf))
        drop = lambda mu, C, slots, w=weights: w @ np.diag(told(mu, C, slots))
        expected = pool_in_turn(mu, centred(C, weights), VALID, drop, 4)
        np.testing.assert_array_equal(found, expected)


def choices_told(targets, valid):
    """The drop of the variance of the choices' probabilities of target queries, to first order.

    To first order p(k) moves with the scores by diag(p) - p p', and its squared changes are
    weighted by 1 / p(k), as in the divergence of two laws.
    """
    places = np.arange(valid.size).reshape(valid.shape)

    def score(mean, covariance, slots):
        lost, total = told(mean, covariance, slots), 0.0
        for target, weight in enumerate(targets):
            if weight > 0:
                own = places[target][valid[target]]
                p, outcome, _ = answer(mean, covariance, own)
                moved = outcome @ lost[np.ix_(own, own)] @ outcome
                total += weight * np.sum(np.diag(moved) / p)
        return total

    return score


@pytest.mark.slow
def test_queries_for_choices_are_those_that_tell_most_of_the_targets(float64):
    mean, covariance, beliefs = random_pool(4, VALID)
    for targets in (None, np.array([0.0, 2.0, 1.0, 0.0, 0.3, np.nan])):
        choose = partial(ask, v_optimal_choices, valid=VALID, num_queries=4, targets=targets)
        weights = (VALID.sum(axis=1) >= 2) * 1.0 if targets is None else np.nan_to_num(targets)
        for mu, C, found in zip(mean, covariance, jax.jit(jax.vmap(choose))(beliefs), strict=True):
            expected = pool_in_turn(mu, C, VALID, choices_told(weights, VALID), 4)
            np.testing.assert_array_equal(found, expected)
    # For pairs it is sum_t w_t k1_t Cov(d_t, d_q)^2 (k1_q / s_q^2).
    pairs = np.ones((4, 2), bool)
    mean, covariance, beliefs = random_pool(5, pairs)
    found = jax.jit(jax.vmap(partial(ask, v_optimal_choices, num_queries=1)))(beliefs)
    for mu, C, query in zip(mean, covariance, found, strict=True):
        d = np.kron(np.eye(4), [1, -1])
        spread = 1 + np.pi / 8 * np.diag(d @ C @ d.T)
        p = 1 / (1 + np.exp(-(d @ mu) / np.sqrt(spread)))
        scores = p * (1 - p) / spread * ((p * (1 - p)) @ (d @ C @ d.T) ** 2)
        assert query[0] == scores.argmax()


@pytest.mark.slow
def test_a_shift_of_a_member_changes_no_score(float64):
    rng = np.random.default_rng(6)
    shifted = SCORES + rng.normal(scale=20, size=(M, 1))
    everything = jax.jit(
        lambda log_probs: pair_drops(
            law_belief(log_probs, jnp.ones(T, bool), law_weights(jnp.log(WEIGHTS))),
            WEIGHTS,
            jnp.arange(T),
        )
    )
    np.testing.assert_allclose(everything(shifted), everything(SCORES), rtol=1e-9, atol=1e-15)
    pools = rng.normal(size=(20, M, 6, 3))
    by_member = pools + rng.normal(scale=20, size=(20, M, 1, 1))
    by_query = pools + rng.normal(scale=20, size=(20, M, 6, 1))
    lift = lambda arm: jax.jit(jax.vmap(partial(ask, arm, valid=VALID, num_queries=4)))
    law, choices = lift(v_optimal_queries), lift(v_optimal_choices)
    np.testing.assert_array_equal(law(by_member), law(pools))
    np.testing.assert_array_equal(choices(by_query), choices(pools))
    holes = np.where(rng.random(pools.shape) < 0.1, -np.inf, 0.0)  # impossible to a member
    np.testing.assert_array_equal(law(by_member + holes), law(pools + holes))
    np.testing.assert_array_equal(choices(by_query + holes), choices(pools + holes))
    assert np.any(np.asarray(law(by_query)) != law(pools))
    # In float32 a large shift is taken off before anything is squared.
    coarse = np.float32(np.round(pools * 16) / 16)
    far = coarse + np.float32(rng.integers(-4000, 4000, (20, M, 6, 1)))
    np.testing.assert_array_equal(choices(far), choices(coarse))


@pytest.mark.slow
def test_a_pair_that_nobody_says_tells_nothing(float64):
    """The members disagree most about two texts without mass, independently of all others."""
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 1.0
    said = 0.1 * signs[:, :1] * [1.0, -1.0, 0.5] + [0.0, 0.2, -0.3]
    unsaid = 3.0 * signs[:, 1:] - 60
    log_probs = jnp.asarray(np.concatenate([said, unsaid], axis=1))
    weights = law_weights(jnp.array([0.0, 0.2, -0.3, -jnp.inf, -jnp.inf]))
    scores = drops_of(law_belief(log_probs, jnp.ones(5, bool), weights), weights, jnp.arange(5))
    assert scores[3, 4] < 1e-25 < 1e-6 < scores[0, 1]
    pair = jax.jit(partial(ask, v_optimal))(log_probs)
    assert {*pair.tolist()} == {0, 1}
    block = np.zeros((5, 5))
    block[:3, :3], block[3:, 3:] = np.cov(said.T), 9 * np.eye(2)
    belief = Belief(jnp.asarray(said.mean(axis=0)[[0, 1, 2, 0, 0]]), jnp.asarray(block))
    scores = drops_of(law_belief(belief, jnp.ones(5, bool), weights), weights, jnp.arange(5))
    assert scores[3, 4] < 1e-30 < 1e-6 < scores[0, 1]


@pytest.mark.slow
def test_pairs_are_queries_of_the_pool_of_all_pairs(float64):
    rng = np.random.default_rng(7)
    pairs = np.array([*combinations(range(T), 2)])
    features = rng.normal(size=(10, T, 3))
    mean = rng.normal(size=(10, T))

    same = jnp.asarray(pairs[:, :, None, None] == pairs[None, None, :, :])
    rows = jnp.broadcast_to(jnp.arange(T), (3, T))

    @jax.jit
    @jax.vmap
    def of_beliefs(mean, features):
        belief = linear_belief(mean, features, jnp.eye(3))
        pool = linear_belief(mean[pairs], features[pairs], jnp.eye(3))
        in_turn = ask(v_optimal_queries, pool, num_queries=3)
        return ask(v_optimal, belief), ask(v_optimal_batch, belief, rows), in_turn

    @jax.jit
    @jax.vmap
    def of_members(scores):
        in_turn = ask(v_optimal_queries, scores[:, pairs], num_queries=3, same=same)
        return ask(v_optimal, scores), ask(v_optimal_batch, scores, rows), in_turn

    members = rng.normal(size=(10, M, T))
    for found in (of_beliefs(mean, features), of_members(members)):
        compared = 0
        for pair, batch, queries in zip(*found, strict=True):
            assert {*pair.tolist()} == {*pairs[queries[0]].tolist()}
            # A batch may ask a pair again, the arm of queries may not.
            if len({*map(frozenset, as_sets(batch))}) == 3:
                assert as_sets(batch) == as_sets(pairs[np.asarray(queries)])
                compared += 1
        assert compared > 2


@pytest.mark.slow
def test_all_documents_as_candidates_are_all_documents_as_texts(float64):
    rng = np.random.default_rng(8)
    scores = jnp.asarray(rng.normal(size=(10, M, T)))
    rows = jnp.broadcast_to(jnp.arange(T), (3, T))

    @jax.jit
    @jax.vmap
    def both(scores):
        mixture = jax.nn.logsumexp(jax.nn.log_softmax(scores, axis=1), axis=0)
        alone = ask(v_optimal, scores), ask(v_optimal_batch, scores, rows)
        by_law = (
            ask(v_optimal, scores, law=mixture),
            ask(v_optimal_batch, scores, rows, law=mixture),
        )
        # Every document twice as a text, with half the weight.
        twice = jnp.concatenate([scores, scores], axis=1)
        documents = jnp.arange(2 * T) % T
        copies = ask(
            v_optimal_batch,
            twice,
            jnp.where(jnp.arange(3)[:, None] == 1, rows + T, rows),
            law=jnp.concatenate([mixture, mixture]),
            same=documents[:, None] == documents[None, :],
        )
        return alone, by_law, (alone[0], copies)

    alone, by_law, by_copies = both(scores)
    for other in (by_law, by_copies):
        for found, expected in zip(other, alone, strict=True):
            np.testing.assert_array_equal(np.sort(found, axis=-1), np.sort(expected, axis=-1))


@pytest.mark.slow
def test_a_linear_belief_is_that_of_many_members(float64):
    rng = np.random.default_rng(9)
    size, num_members = 3, 40_000
    factor = rng.normal(size=(size, size))
    centre, features = rng.normal(size=size), rng.normal(size=(T, size))
    found = jax.jit(linear_belief)(features @ centre, features, factor @ factor.T)
    expected = features @ factor @ factor.T @ features.T
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-12)
    # Members at plus and minus the columns of the factor have its moments without a draw.
    points = np.concatenate([factor.T, -factor.T]) * np.sqrt((2 * size - 1) / 2)
    exact = members_belief(jnp.asarray((centre + points) @ features.T), shrink=0.0)
    np.testing.assert_allclose(exact.covariance, found.covariance, atol=1e-12)
    np.testing.assert_allclose(exact.mean, found.mean, atol=1e-12)
    drawn = (centre + rng.normal(size=(num_members, size)) @ factor.T) @ features.T
    many = members_belief(jnp.asarray(drawn))  # hardly shrunk
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.all(np.abs(many.covariance - expected) < (4.5 / num_members**0.5 * 1.5) * scale)
    weights = law_weights(jnp.zeros(T))
    scores = [
        drops_of(law_belief(belief, jnp.ones(T, bool), weights), weights, jnp.arange(T))
        for belief in (found, exact)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-12)
    # Features of any shape: queries.
    whole = linear_belief(jnp.zeros((2, 3)), jnp.asarray(features.reshape(2, 3, size)), jnp.eye(3))
    gram = (features @ features.T).reshape(2, 3, 2, 3)
    np.testing.assert_allclose(whole.covariance, gram, rtol=1e-12)


@pytest.mark.slow
def test_the_belief_of_members(float64):
    belief = jax.jit(members_belief)(SCORES)
    raw = np.cov(SCORES.T)
    np.testing.assert_allclose(belief.mean, SCORES.mean(axis=0), rtol=1e-13)
    expected = np.where(np.eye(T), raw, M / (16 + M) * raw)
    np.testing.assert_allclose(belief.covariance, expected, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(members_belief(jnp.asarray(SCORES), shrink=0.0).covariance, raw)
    same = np.arange(T)[:, None] // 2 == np.arange(T)[None, :] // 2
    some = members_belief(jnp.asarray(SCORES), shrink=0.25, same=jnp.asarray(same))
    np.testing.assert_allclose(some.covariance, np.where(same, 1.0, 0.75) * raw)
    assert [shrinkage(4), shrinkage(16), shrinkage(64)] == [0.8, 0.5, 0.2]
    # What is impossible to a member is like the least likely of the others.
    holes, filled = SCORES.copy(), SCORES.copy()
    holes[0, 2], holes[3, 1], holes[3, 5] = -np.inf, np.nan, -1e30
    filled[0, 2] = np.delete(SCORES[0], 2).min()
    filled[3, [1, 5]] = np.delete(SCORES[3], [1, 5]).min()
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-12),
        jax.jit(members_belief)(holes),
        jax.jit(members_belief)(filled),
    )
