"""Whole queries against enumeration: scores, the laws of the arms, information of a batch.

Every arm is compiled once in float32, lifted over seeds, with checks, for batches of five: the
first two have the law of a batch of two. Bounds on frequencies are 4.5 standard deviations.
"""

from functools import cache, partial
from itertools import combinations, permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

from shatter import exploration
from shatter.exploration import (
    boltzmann_queries,
    conditional_information_gain,
    delta_ucb_queries,
    double_thompson_queries,
    infomax,
    infomax_queries,
    information_directed_queries,
    information_gain,
    joint_infomax_queries,
    joint_information_gain,
    query_information_gain,
    query_variance,
    thompson_queries,
    uniform_queries,
    v_optimal_choices,
    v_optimal_queries,
    variance,
    variance_queries,
)

ARMS = [
    uniform_queries,
    boltzmann_queries,
    thompson_queries,
    double_thompson_queries,
    infomax_queries,
    variance_queries,
    delta_ucb_queries,
    information_directed_queries,
    v_optimal_queries,
    v_optimal_choices,
    partial(joint_infomax_queries, num_outcomes=16),
]
NAMES = [getattr(arm, "func", arm).__name__ for arm in ARMS]
every_arm = pytest.mark.parametrize("arm", ARMS, ids=NAMES)
NUM_KEYS = 4_000
M, Q, K = 4, 7, 3
LOG_PROBS = np.random.default_rng(0).normal(scale=1.5, size=(M, Q, K))
# Queries of three and of two responses. The last two have one and none and cannot be asked.
VALID = np.array(
    [[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 0]], bool
)
USABLE = [0, 1, 2, 3, 4]
GARBAGE = np.where(VALID, LOG_PROBS, np.nan)


def entropy(p):
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)


def laws(log_probs, valid):
    """Each member's chance of each response, `[M, Q, K]`; NaN where a query has no response."""
    weights = np.where(valid, np.exp(log_probs), 0)
    with np.errstate(invalid="ignore"):
        return weights / weights.sum(axis=-1, keepdims=True)


def joint_gain(p):
    """From laws `[M, B, K]`: H(answers) - mean H(answers | member), over the joint outcomes."""
    chances = np.ones((len(p), 1))
    for query in p.swapaxes(0, 1):
        chances = (chances[:, :, None] * query[:, None, :]).reshape(len(p), -1)
    return entropy(chances.mean(axis=0)) - entropy(chances).mean()


def centred(log_probs, valid):
    """Over the valid responses of the whole pool; an empty slot is average."""
    means = log_probs[:, valid].mean(axis=1)
    return np.where(valid, log_probs - means[:, None, None], 0)


@cache
def compiled(arm):
    choose = lambda key, log_probs, valid: arm(key, log_probs, valid=valid, num_queries=5)
    return jax.jit(checkify.checkify(jax.vmap(choose)))


def ask(arm, log_probs=GARBAGE, valid=VALID, *, seed=0, num_batches=1, error=None):
    """Batches `[num_batches * NUM_KEYS, 5]`."""
    tables = np.broadcast_to(np.float32(log_probs), (NUM_KEYS, M, Q, K))
    shown = np.broadcast_to(valid, (NUM_KEYS, Q, K))
    drawn = []
    for keys in jax.random.split(jax.random.key(seed), (num_batches, NUM_KEYS)):
        found, queries = compiled(arm)(keys, tables, shown)
        assert found.get() is None if error is None else error in found.get()
        drawn.append(np.asarray(queries))
    return np.concatenate(drawn)


def lifted(arm, log_probs, *, num_keys, **arguments):
    keys = jax.random.split(jax.random.key(0), num_keys)
    choose = jax.vmap(partial(arm, **arguments), in_axes=(0, None))
    return np.asarray(jax.jit(choose)(keys, jnp.asarray(log_probs)))


def assert_law(drawn, law):
    """Whether the first two of every batch fit their law `[Q, Q]`."""
    table = np.zeros(law.shape)
    np.add.at(table, tuple(drawn[:, :2].T), 1 / len(drawn))
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-9)
    assert np.all(np.abs(table - law) <= 4.5 * np.sqrt(law * (1 - law) / len(drawn)) + 1e-12)


def in_turn(chances):
    """Two queries, each from one of the rows `[M, Q]` drawn afresh, the second among the rest."""
    rest = np.mean(chances[:, None, :] / (1 - chances[:, :, None]), axis=0)
    return chances.mean(axis=0)[:, None] * np.where(np.eye(Q, dtype=bool), 0, rest)


def test_information_gain_is_the_entropy_that_members_do_not_share(float64):
    p = laws(LOG_PROBS, VALID)
    expected = np.array([joint_gain(p[:, [q]]) if q in USABLE else 0 for q in range(Q)])
    score = jax.jit(query_information_gain)
    gain = score(GARBAGE, valid=VALID)
    np.testing.assert_allclose(gain, expected, atol=1e-14)
    np.testing.assert_array_equal(gain[5:], 0)
    shifted = LOG_PROBS + np.random.default_rng(1).normal(scale=9, size=(M, Q, 1))
    np.testing.assert_allclose(score(shifted, valid=VALID), expected, atol=1e-13)
    # Bounded below by twice the variance; near 0 the gain is second order as well.
    everything = np.ones((Q, K), bool)
    spread = jax.jit(query_variance)(LOG_PROBS, valid=everything)
    by_hand = laws(LOG_PROBS, True).var(axis=0).sum(axis=-1) / 2
    np.testing.assert_allclose(spread, by_hand, rtol=1e-12)
    assert np.all(score(LOG_PROBS, valid=everything) > 2 * spread)
    np.testing.assert_allclose(score(1e-7 * LOG_PROBS, valid=everything), 0, atol=1e-13)


@pytest.mark.slow
def test_a_pair_has_the_gain_and_the_variance_of_a_pair(float64):
    candidates = jnp.asarray(LOG_PROBS[:, :, 0])
    pairs = np.array([*combinations(range(Q), 2)])
    # A third slot that is empty changes nothing.
    queries = np.concatenate([LOG_PROBS[:, pairs, 0], np.full((M, len(pairs), 1), np.nan)], axis=-1)
    valid = np.broadcast_to([True, True, False], queries.shape[1:])
    spread = laws(queries[..., :2], True)[..., 0].var(axis=0)
    gain = jax.jit(information_gain)(candidates)[tuple(pairs.T)]
    choose = partial(infomax_queries, valid=valid, num_queries=3)
    most_disputed = partial(variance_queries, valid=valid, num_queries=3)

    @jax.jit
    def everything(key, queries):
        scores = query_information_gain(queries, valid=valid), query_variance(queries, valid=valid)
        no_third = query_information_gain(queries[..., :2]), query_variance(queries[..., :2])
        return scores, no_third, choose(key, queries), most_disputed(jax.random.clone(key), queries)

    *both, by_gain, by_variance = everything(jax.random.key(0), queries)
    for actual in both:
        np.testing.assert_allclose(actual[0], gain, atol=1e-15)
        np.testing.assert_allclose(actual[1], spread, atol=1e-15)
    np.testing.assert_array_equal(by_gain, np.argsort(-gain)[:3])
    np.testing.assert_array_equal(by_variance, np.argsort(-spread)[:3])
    for arm, best in [(infomax, by_gain[0]), (variance, by_variance[0])]:
        pair = jax.jit(arm)(jax.random.key(0), candidates)
        assert {*pairs[best].tolist()} == {*pair.tolist()}


@pytest.mark.slow
def test_scores_at_the_edges_and_their_gradients():
    extreme = np.array(
        [[[0.0, -1e30, -800.0], [1.0, 0.0, np.nan]], [[-1e4, 0, -np.inf], [1, 0, 0]]]
    )
    extreme, valid = extreme.astype(np.float32), np.array([[1, 1, 1], [1, 1, 0]], bool)

    def scores(u):
        gain, spread = query_information_gain(u, valid=valid), query_variance(u, valid=valid)
        return gain, spread, joint_information_gain(u, valid=valid)

    gain, spread, together = jax.jit(scores)(extreme)
    assert gain.dtype == spread.dtype == together.dtype == jnp.float32
    np.testing.assert_allclose(
        gain, [np.log(2), 0], atol=1e-7
    )  # members that disagree; members that agree
    np.testing.assert_allclose(spread, [1 / 4, 0], atol=1e-7)
    np.testing.assert_allclose(together, np.log(2), rtol=1e-6)
    weighted = lambda u: sum(jnp.sum(jnp.cos(jnp.arange(s.size)) * s.ravel()) for s in scores(u))
    slope = jax.jit(jax.grad(weighted))
    assert np.isfinite(slope(extreme)[:, valid]).all()
    assert not np.any(slope(extreme)[:, ~valid])
    with jax.enable_x64(True):
        check_grads(jax.jit(weighted), (LOG_PROBS[:2, :2],), order=1, modes=["rev"])


def test_joint_gain_is_the_entropy_of_all_answers_and_obeys_the_chain_rule(float64):
    p = laws(LOG_PROBS, VALID)
    whole = joint_gain(p[:, USABLE])
    # Queries that cannot be asked add nothing.
    actual = jax.jit(joint_information_gain)(GARBAGE, valid=VALID)
    np.testing.assert_allclose(actual, whole, atol=1e-13)

    @jax.jit
    def expected_gain(evidence, posteriors):
        after = lambda row: conditional_information_gain(GARBAGE, row[None], valid=VALID)
        return evidence @ jax.vmap(after)(posteriors)

    # What each query adds to the answers to the earlier ones, averaged over those answers.
    total, chances = 0.0, np.ones((1, M))  # each member's chance of every outcome so far
    for query in USABLE:
        evidence, posteriors = np.zeros(81), np.full((81, M), 1 / M)
        evidence[: len(chances)] = chances.mean(axis=1)
        posteriors[: len(chances)] = chances / chances.sum(axis=1, keepdims=True)
        added = np.asarray(expected_gain(evidence, posteriors))
        for other in USABLE:
            with_it = joint_gain(p[:, [*range(query), other]])
            np.testing.assert_allclose(added[other], with_it - joint_gain(p[:, :query]), atol=1e-13)
        np.testing.assert_allclose(added[5:], 0, atol=1e-15)
        if query == 0:
            alone = added
        total += added[query]
        chances = (chances[:, None, :] * p[:, query].T[None]).reshape(-1, M)
        chances = chances[chances[:, 0] > 0]
    np.testing.assert_allclose(total, whole, atol=1e-13)
    assert alone.max() < whole < alone.sum() - 0.1
    np.testing.assert_allclose(alone[:5], [joint_gain(p[:, [q]]) for q in USABLE], atol=1e-14)


def test_joint_gain_of_a_copy_and_of_independent_bits(float64):
    # Members 0..3 hold two bits; a query asks for one of them, and is answered without noise.
    sure = lambda bits: np.where(np.array(bits)[:, None] == np.arange(2), 0.0, -np.inf)
    first, second, neither = sure([0, 0, 1, 1]), sure([0, 1, 0, 1]), np.zeros((4, 2))
    gain = jax.jit(lambda *queries: joint_information_gain(jnp.stack(queries, axis=1)))
    np.testing.assert_allclose(gain(first, neither, neither), np.log(2), rtol=1e-14)
    np.testing.assert_allclose(gain(first, first, first), np.log(2), rtol=1e-14)
    np.testing.assert_allclose(gain(first, second, first), np.log(4), rtol=1e-14)
    with pytest.raises(ValueError, match=r"23 queries of 2 slots have 2\^23 joint outcomes"):
        jax.eval_shape(gain, *[first] * 23)


@pytest.mark.slow
def test_the_best_alone_are_copies_and_the_best_together_are_not():
    # Five copies of a query on which 4 members disagree with 4. The members disagree a little less
    # on four other queries, each of which divides them in another way.
    disputes = [[1, 1, 1, 1, 0, 0, 0, 0]] * 5
    disputes += [[1, 1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1, 1, 0]]
    disputes += [[1, 0, 0, 1, 1, 0, 0, 1]]
    odds = (np.array(disputes).T * 2.0 - 1) * np.array([3.0] * 5 + [2.5] * 4)
    log_probs = np.stack([odds, np.zeros_like(odds)], axis=-1).astype(np.float32)
    alone = lifted(infomax_queries, log_probs, num_keys=200, num_queries=4)
    together = lifted(joint_infomax_queries, log_probs, num_keys=200, num_queries=4)
    assert np.all(alone < 5)
    assert np.all(together[:, 0] < 5) and np.all(together[:, 1:] >= 5)
    for first in (alone[:, 0], together[:, 0]):  # the copies are tied, and the key decides
        shares = np.bincount(first, minlength=5) / 200
        assert np.all(np.abs(shares - 0.2) < 4.5 * np.sqrt(0.16 / 200))
    p = laws(log_probs.astype(float), True)
    assert joint_gain(p[:, together[0]]) > joint_gain(p[:, alone[0]]) + 0.5


@pytest.mark.slow
def test_the_greedy_batch_takes_what_adds_most(float64):
    tables = np.random.default_rng(3).normal(scale=2.5, size=(24, 6, 9, K))
    valid = np.random.default_rng(4).random((24, 9, K)) < 0.8
    valid[:, :3] = True
    arm = partial(joint_infomax_queries, num_queries=3, num_outcomes=6_000)
    choose = jax.jit(jax.vmap(lambda key, u, valid: arm(key, u, valid=valid)))
    chosen = choose(jax.random.split(jax.random.key(0), 24), tables, valid)
    lost = []
    for u, shown, batch in zip(tables, valid, np.asarray(chosen).tolist(), strict=True):
        p, free = laws(u, shown), shown.sum(axis=-1) >= 2
        for size, query in enumerate(batch):
            gains = [joint_gain(p[:, [*batch[:size], q]]) if free[q] else -1 for q in range(9)]
            lost.append(max(gains) - gains[query])
            free[query] = False
    lost = np.array(lost).reshape(24, 3)
    np.testing.assert_allclose(lost[:, 0], 0, atol=1e-12)  # nothing is sampled yet
    assert lost.max() < 0.01
    assert np.mean(lost < 1e-12) > 0.9


def test_uniform_queries_are_uniform():
    law = np.zeros((Q, Q))
    law[:5, :5] = (1 - np.eye(5)) / 20
    assert_law(ask(uniform_queries, num_batches=5), law)


SHIFTED = GARBAGE + np.array([40.0, 0, -7, 3])[:, None, None]  # a shift a member


@pytest.mark.slow
def test_boltzmann_is_the_product_of_the_tempered_mixture():
    p = np.exp(LOG_PROBS) * VALID
    mixture = (p / p.sum(axis=(1, 2), keepdims=True)).mean(axis=0)
    utilities = centred(np.log(np.where(VALID, mixture, 1))[None], VALID)[0].sum(axis=-1)

    def law(temperature):
        weights = np.exp(utilities / temperature) * (np.arange(Q) < 5)
        return in_turn((weights / weights.sum())[None])

    assert_law(ask(boltzmann_queries, num_batches=5), law(2))
    assert_law(ask(boltzmann_queries, SHIFTED, num_batches=5), law(2))
    with jax.enable_x64(True):
        arguments = {"valid": VALID, "num_queries": 2, "temperature": 0.7}
        assert_law(lifted(boltzmann_queries, SHIFTED, num_keys=20_000, **arguments), law(0.7))


@pytest.mark.slow
def test_thompson_draws_a_member_for_every_query():
    weights = np.exp(centred(LOG_PROBS, VALID).sum(axis=-1)) * (np.arange(Q) < 5)
    law = in_turn(weights / weights.sum(axis=1, keepdims=True))
    assert_law(ask(thompson_queries, num_batches=5), law)
    with jax.enable_x64(True):
        arguments = {"valid": VALID, "num_queries": 2}
        assert_law(lifted(thompson_queries, SHIFTED, num_keys=20_000, **arguments), law)


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [2, 3])
def test_double_thompson_takes_the_largest_sum_of_its_members(num_slots):
    valid = VALID[:, -num_slots:]
    utilities = centred(LOG_PROBS[..., -num_slots:], valid)
    can_be_asked = valid.sum(axis=-1) >= 2
    by_members = []
    for members in product(range(M), repeat=num_slots):
        orders = permutations(members)
        sums = [sum(utilities[m, :, k] for k, m in enumerate(order)) for order in orders]
        by_members.append(np.where(can_be_asked, np.max(sums, axis=0), -np.inf))
    law = np.zeros((Q, Q))
    for first, then in product(np.array(by_members), repeat=2):
        best = first.argmax()
        second = np.where(np.arange(Q) == best, -np.inf, then).argmax()
        law[best, second] += 1 / len(by_members) ** 2
    assert np.sum(law > 0) > 3
    if num_slots == 3:
        return assert_law(ask(double_thompson_queries, SHIFTED, num_batches=5), law)
    with jax.enable_x64(True):
        arguments = {"valid": valid, "num_queries": 2}
        table = SHIFTED[..., -num_slots:]
        assert_law(lifted(double_thompson_queries, table, num_keys=20_000, **arguments), law)


@pytest.mark.slow
@every_arm
def test_batches_differ_can_be_asked_and_follow_the_key(arm):
    log_probs = GARBAGE.copy()
    log_probs[0, 1, 2] = log_probs[1, 4] = -np.inf  # impossible to a member
    drawn = ask(arm, log_probs)
    assert np.issubdtype(drawn.dtype, np.integer)
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.broadcast_to(USABLE, drawn.shape))
    np.testing.assert_array_equal(ask(arm, log_probs), drawn)
    # With too few queries some repeat, none has fewer than two responses, and checkify reports it.
    few = VALID & (np.arange(Q) != 3)[:, None]
    error = "5 queries are wanted, found 4 with two responses or more"
    assert {*ask(arm, log_probs, few, error=error).ravel().tolist()} == {0, 1, 2, 4}
    ask(arm, np.where(np.arange(K) == 1, np.nan, GARBAGE), error="hold a NaN")


@pytest.mark.slow
@every_arm
def test_members_that_agree_leave_it_to_the_key(arm):
    agree = np.broadcast_to(LOG_PROBS[:1], (M, Q, K))
    valid = np.ones((Q, K), bool)
    by_liking = ("thompson", "boltzmann", "delta_ucb")
    if any(name in str(arm) for name in by_liking):  # these prefer what the members like
        agree = np.broadcast_to(agree[:, :1], (M, Q, K))
    assert_law(ask(arm, agree, valid, num_batches=2), (1 - np.eye(Q)) / (Q * (Q - 1)))


@pytest.mark.slow
@every_arm
def test_seeds_lifted_are_seeds_in_a_loop(arm):
    one = jax.jit(lambda key, u, valid: arm(key, u, valid=valid, num_queries=5))
    keys = jax.random.split(jax.random.key(5), NUM_KEYS)
    tables = np.float32(np.random.default_rng(6).normal(size=(NUM_KEYS, M, Q, K)))
    valid = np.random.default_rng(7).random((NUM_KEYS, Q, K)) < 0.95
    valid[:, USABLE] |= VALID[USABLE]
    _, drawn = compiled(arm)(jax.random.clone(keys), tables, valid)
    for i in range(20):
        np.testing.assert_array_equal(one(keys[i], tables[i], valid[i]), drawn[i])


@every_arm
def test_wrong_arguments(arm):
    def trace(log_probs=LOG_PROBS, **arguments):
        choose = partial(arm, **({"num_queries": 2} | arguments))
        return jax.eval_shape(choose, jax.random.key(0), log_probs)

    assert trace(num_queries=Q).shape == (Q,)
    assert trace(LOG_PROBS[:1]).shape == (2,)
    with pytest.raises(AssertionError, match="rank"):
        trace(LOG_PROBS[0])
    with pytest.raises(AssertionError, match="type"):
        trace(LOG_PROBS.astype(int))
    with pytest.raises(AssertionError, match="shape"):
        trace(valid=VALID[:, :2])
    for wrong in (0, 8):
        with pytest.raises(ValueError, match=f"from 1 to the pool's 7, found {wrong}"):
            trace(num_queries=wrong)
    with pytest.raises(ValueError, match="at least two slots"):
        trace(LOG_PROBS[..., :1])


def test_wrong_hyper_parameters():
    def trace(arm, *arguments, **hyper):
        return jax.eval_shape(partial(arm, **hyper), *arguments)

    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_outcomes must be above 0, found 0"):
        trace(joint_infomax_queries, key, LOG_PROBS, num_queries=2, num_outcomes=0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        trace(boltzmann_queries, key, LOG_PROBS, num_queries=2, temperature=-1.0)
    with pytest.raises(AssertionError, match="shape"):
        trace(conditional_information_gain, LOG_PROBS, np.ones((3, M + 1)))


def test_every_arm_is_here():
    whole = ("_queries", "_choices")
    assert {*NAMES} == {name for name in exploration.__all__ if name.endswith(whole)}
