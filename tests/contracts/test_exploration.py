"""One contract for every arm: `(key, log_probs[M, N], *, valid, num_responses) -> indices[K]`.

The exact laws are enumerated in numpy; every arm is compiled once for each number of responses and
draws with many keys at a time. Bounds on frequencies are 4.5 standard deviations.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import exploration

pytestmark = pytest.mark.slow  # takes long to compile

NUM_KEYS = 4_000
MEMBERS, CANDIDATES = 3, 6
REDRAWS = 30

SAMPLING = [
    "uniform",
    "greedy",
    "boltzmann",
    "thompson",
    "double_thompson",
    "double_thompson_sampled",
]
PAIR_SCORES = [
    "infomax",
    "information_directed",
    "law_infomax",
    "log_ratio_variance",
    "mass_weighted_variance",
    "v_optimal",
    "variance",
]
DETERMINISTIC = [*PAIR_SCORES, "delta_ucb", "ucb"]
every_arm = pytest.mark.parametrize("arm", [*SAMPLING, *DETERMINISTIC])

# Multiples of 1/8, so that shifting a member by an integer is exact; no ties, not even in sums.
LOG_PROBS = np.array(
    [
        [-1.125, -2.5, -0.375, -4.25, -3.0, -2.0],
        [-2.25, -1.5, -0.875, -1.0, -5.125, -3.5],
        [-1.375, -3.75, -2.125, -2.875, -0.625, -4.5],
    ],
    np.float32,
)
VALID = np.array([True, True, False, True, True, True])


@cache
def compiled(arm, num_responses, distinct):
    """Pairs of different responses with checks, the rest without: both ways are to work."""
    arm = partial(getattr(exploration, arm), num_responses=num_responses, distinct=distinct)
    choose = lambda key, log_probs, valid: arm(key, log_probs, valid=valid)
    lifted = jax.vmap(choose, in_axes=(0, None, None))
    if num_responses == 2 and distinct:
        return jax.jit(checkify.checkify(lifted))
    return jax.jit(lambda *arguments: (None, lifted(*arguments)))


def ask(
    arm,
    log_probs=LOG_PROBS,
    valid=VALID,
    *,
    num_responses=2,
    distinct=True,
    num_batches=1,
    seed=0,
    error=None,
):
    """Responses `[num_batches * NUM_KEYS, K]`; pairs come with the error that is expected."""
    choose = compiled(arm, num_responses, distinct)
    log_probs, valid = jnp.asarray(log_probs, jnp.float32), jnp.asarray(valid)
    keys = jax.random.split(jax.random.key(seed), (num_batches, NUM_KEYS))
    errors, responses = zip(*[choose(batch, log_probs, valid) for batch in keys], strict=True)
    for found in errors if num_responses == 2 and distinct else ():
        assert (found.get() is None) if error is None else (error in found.get())
    return np.concatenate(responses)


def frequencies(responses):
    """How often each ordered tuple of responses came, `[N] * K`."""
    table = np.zeros((CANDIDATES,) * responses.shape[1])
    np.add.at(table, tuple(responses.T), 1 / len(responses))
    return table


def assert_law(responses, law):
    """Whether the responses fit their law; what is impossible never comes."""
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-6)
    error = np.abs(frequencies(responses) - law)
    assert np.all(error <= 4.5 * np.sqrt(law * (1 - law) / len(responses)) + 1e-12), error.max()


def one_by_one(law, valid, num_responses, *, distinct=True, redraws=None):
    """The law of responses drawn in turn, `[N] * K`.

    Each is redrawn until it differs from the earlier ones: without limit, or `redraws` times and
    then uniformly among the rest.
    """
    table = np.zeros((len(law),) * num_responses)
    for responses in np.ndindex(table.shape):
        chance, taken = 1.0, np.zeros(len(law), bool)
        for response in responses:
            if not distinct:
                chance *= law[response]
                continue
            rest = valid & ~taken
            mass = law[taken].sum()
            never = 0.0 if redraws is None else mass ** (redraws + 1)
            proper = law[response] / (1 - mass) if mass < 1 else 0.0
            chance *= rest[response] * (proper * (1 - never) + never / max(rest.sum(), 1))
            taken[response] = True
        table[responses] = chance
    return table


def exact_law(arm, log_probs, valid, num_responses, *, distinct=True):
    weights = np.where(valid, np.exp(log_probs.astype(float)), 0)
    laws = weights / weights.sum(axis=1, keepdims=True)
    mixture = laws.mean(axis=0)
    in_turn = partial(one_by_one, valid=valid, num_responses=num_responses, distinct=distinct)
    if arm == "uniform":
        return in_turn(valid / valid.sum())
    if arm == "greedy":
        return in_turn(mixture)
    if arm == "boltzmann":  # the temperature is 2
        return in_turn(np.sqrt(mixture) / np.sqrt(mixture).sum())
    if arm == "thompson":
        return np.mean([in_turn(law) for law in laws], axis=0)
    if arm == "double_thompson_sampled":
        return in_turn(mixture, redraws=REDRAWS)
    assert arm == "double_thompson"
    is_best = weights == weights.max(axis=1, keepdims=True)
    return in_turn((is_best / is_best.sum(axis=1, keepdims=True)).mean(axis=0), redraws=REDRAWS)


def assert_valid_and_different(responses, valid=VALID):
    assert valid[responses].all()
    in_order = np.sort(responses, axis=1)
    assert np.all(in_order[:, 1:] > in_order[:, :-1])


@every_arm
@pytest.mark.parametrize("num_responses", [2, 3])
def test_responses_are_valid_and_different(arm, num_responses):
    responses = ask(arm, num_responses=num_responses)
    assert responses.shape == (NUM_KEYS, num_responses)
    assert np.issubdtype(responses.dtype, np.integer)
    assert_valid_and_different(responses)


@every_arm
def test_the_key_decides(arm):
    responses = ask(arm, seed=1)
    np.testing.assert_array_equal(responses, ask(arm, seed=1))
    pairs = {tuple(sorted(pair)) for pair in responses.tolist()}
    assert (len(pairs) == 1) == (arm in DETERMINISTIC)


@pytest.mark.parametrize("arm", SAMPLING)
@pytest.mark.parametrize("num_responses", [2, 3])
def test_the_law_of_different_responses(arm, num_responses):
    responses = ask(arm, num_responses=num_responses, num_batches=5, seed=2)
    assert_law(responses, exact_law(arm, LOG_PROBS, VALID, num_responses))


@pytest.mark.parametrize("arm", [*SAMPLING, "ucb"])
def test_responses_may_repeat_where_that_is_allowed(arm):
    responses = ask(arm, distinct=False, num_batches=5, seed=3)
    repeated = np.mean(responses[:, 0] == responses[:, 1])
    if arm == "ucb":  # the best, twice
        assert repeated == 1
    else:
        assert 0 < repeated < 1
        assert_law(responses, exact_law(arm, LOG_PROBS, VALID, 2, distinct=False))


@every_arm
def test_members_that_agree(arm):
    log_probs = np.stack([LOG_PROBS[1]] * MEMBERS)
    responses = ask(arm, log_probs, seed=4)
    assert_valid_and_different(responses)
    if arm == "ucb":  # the two best
        np.testing.assert_array_equal(responses, [[3, 1]] * NUM_KEYS)
    elif arm == "delta_ucb":  # the best and the worst
        np.testing.assert_array_equal(np.sort(responses, axis=1), [[3, 4]] * NUM_KEYS)
    else:  # no pair tells anything, so that all are tied
        like = "uniform" if arm in PAIR_SCORES else arm
        assert_law(responses, exact_law(like, log_probs, VALID, 2))


@every_arm
def test_members_that_know_nothing_ask_uniformly(arm):
    log_probs = np.zeros((MEMBERS, CANDIDATES))
    assert_law(ask(arm, log_probs, seed=5), exact_law("uniform", log_probs, VALID, 2))


@every_arm
def test_relabelled_candidates(arm):
    order = np.array([4, 2, 0, 5, 1, 3])
    responses = ask(arm, seed=6)
    relabelled = order[ask(arm, LOG_PROBS[:, order], VALID[order], seed=7)]
    if arm in DETERMINISTIC:
        assert {*responses[0]} == {*relabelled[0]}
        np.testing.assert_array_equal(
            np.sort(relabelled, axis=1), np.sort([responses[0]] * NUM_KEYS, axis=1)
        )
    before, after = frequencies(responses), frequencies(relabelled)
    pooled = (before + after) / 2
    spread = np.sqrt(2 * pooled * (1 - pooled) / NUM_KEYS)
    assert np.all(np.abs(before - after) <= 4.5 * spread + 1e-12)


@every_arm
def test_a_shift_of_a_member_changes_nothing(arm):
    shifted = LOG_PROBS + np.array([[40.0], [-7.0], [3.0]])
    same = np.all(ask(arm, seed=8) == ask(arm, shifted, seed=8), axis=1)
    # Random numbers that lie closer together than rounding may change places.
    assert same.all() if arm in DETERMINISTIC else same.mean() > 0.999


@every_arm
def test_too_few_valid_candidates_repeat(arm):
    one = np.arange(CANDIDATES) == 4
    assert np.all(ask(arm, valid=one, error="2 responses are wanted, found 1 valid") == 4)
    two = one | (np.arange(CANDIDATES) == 1)
    responses = ask(arm, valid=two, num_responses=3)
    assert two[responses].all()
    assert np.all(np.any(responses == 1, axis=1) & np.any(responses == 4, axis=1))


@every_arm
def test_impossible_candidates_are_chosen_last(arm):
    # -inf, and the -1e30 of `shatter.documents.log_prob`, at which squares overflow.
    possible = np.array([True, True, True, True, False, False])
    log_probs = LOG_PROBS.copy()
    log_probs[:, 4:] = [-np.inf, -1e30]
    responses = ask(arm, log_probs, seed=9)
    assert_valid_and_different(responses)
    if arm not in ["uniform", "infomax", "variance", "delta_ucb"]:
        assert possible[responses].all()
    # With one possible candidate among the valid the responses still differ.
    alone = np.where(np.arange(CANDIDATES) == 3, -1.0, -np.inf)
    assert_valid_and_different(ask(arm, np.stack([alone] * MEMBERS), seed=10))


@every_arm
def test_members_that_disagree_without_bound(arm):
    log_probs = LOG_PROBS.copy()
    log_probs[0, 4] = log_probs[1, 3] = -np.inf
    assert_valid_and_different(ask(arm, log_probs, seed=11))


@every_arm
def test_unknown_log_probs_are_found_on_demand(arm):
    log_probs = np.where(LOG_PROBS == -1.5, np.nan, LOG_PROBS)
    ask(arm, log_probs, error="log-probs hold a NaN")


@every_arm
def test_wrong_arguments_at_trace_time(arm):
    choose = getattr(exploration, arm)

    def trace(log_probs=LOG_PROBS, **arguments):
        return jax.eval_shape(partial(choose, **arguments), jax.random.key(0), log_probs)

    assert trace().shape == (2,)
    assert trace(num_responses=3).shape == (3,)
    assert trace(LOG_PROBS[:1], num_responses=6).shape == (6,)
    with pytest.raises(AssertionError, match="rank"):
        trace(LOG_PROBS[0])
    with pytest.raises(AssertionError, match="type"):
        trace(LOG_PROBS.astype(int))
    with pytest.raises(AssertionError, match="shape"):
        trace(valid=jnp.ones(CANDIDATES - 1, bool))
    with pytest.raises(ValueError, match="num_responses >= 2, found 1"):
        trace(num_responses=1)
    with pytest.raises(ValueError, match="3 different responses need at least as many candidates"):
        trace(LOG_PROBS[:, :2], num_responses=3)
    assert trace(LOG_PROBS[:, :2], num_responses=3, distinct=False).shape == (3,)


def test_the_contract_is_about_every_arm():
    others = {
        "Belief",
        "PairArm",
        "QueryArm",
        "conditional_information_gain",
        "distinct",
        "drawn_candidates",
        "information_gain",
        "joint_information_gain",
        "law_information_gain",
        "linear_belief",
        "members_belief",
        "pool_candidates",
        "query_information_gain",
        "query_variance",
        "sampled_candidates",
        "shrinkage",
        "v_optimal_batch",
    }
    whole = ("_queries", "_choices")
    whole_queries = {name for name in exploration.__all__ if name.endswith(whole)}
    assert {*SAMPLING, *DETERMINISTIC} == {*exploration.__all__} - others - whole_queries
