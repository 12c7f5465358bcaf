import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from shatter.losses import (
    adapt_beta,
    generalised_advantages,
    kl_penalised_rewards,
    posterior_loss,
    ppo_loss,
    reinforce_loss,
    rloo_loss,
    value_loss,
    whiten,
)

pytestmark = pytest.mark.usefixtures("float64")

REWARDS = np.array([1.0, 0.0, -0.5, 2.0])
P0 = np.array([0.1, 0.2, 0.3, 0.4])
BETA = 0.5
LOGITS = np.random.default_rng(0).normal(0.0, 1.0, 4)
PI = np.exp(LOGITS) / np.exp(LOGITS).sum()
SLOPE = PI * (REWARDS - (PI * REWARDS).sum())  # of E_pi r in the logits

# Tokens of three documents: a prompt of two and a response to the end; a response of one token with
# padding after it; nothing but prompt.
MASK = np.array(
    [[False, False, True, True, True, True], [False, False, True, False, False, False], [False] * 6]
)
TOKENS, REF_TOKENS, VALUES, TOKEN_REWARDS = np.random.default_rng(1).normal(-1.0, 1.0, (4, 3, 6))
SCORES = np.array([2.0, -1.0, 5.0])


def outside(array: np.ndarray, garbage: float) -> np.ndarray:
    """Returns the array with garbage where the mask is false."""
    return np.where(MASK, array, garbage)


# --- REINFORCE ------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, -3.0, 10.0])
def test_expected_reinforce_gradient_is_that_of_the_mean_reward(baseline):
    @jax.jit
    @jax.value_and_grad
    def mean_loss(logits, baseline):
        law = jax.lax.stop_gradient(jax.nn.softmax(logits))
        losses = reinforce_loss(jax.nn.log_softmax(logits), jnp.asarray(REWARDS), baseline)
        return jnp.sum(law * losses)

    value, slope = mean_loss(LOGITS, baseline)
    assert value == pytest.approx(baseline - (PI * REWARDS).sum(), rel=1e-13)
    np.testing.assert_allclose(slope, -SLOPE, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3])
def test_expected_leave_one_out_gradient_over_all_batches(size):
    """The mean is over all batches of K samples of four documents, by their probability."""
    batches = np.array(list(itertools.product(range(4), repeat=size)))
    law = PI[batches].prod(1)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(logits):
        losses = rloo_loss(jax.nn.log_softmax(logits)[batches], jnp.asarray(REWARDS[batches]))
        return jnp.sum(law * jnp.mean(losses, axis=-1))

    value, slope = mean_loss(LOGITS)
    assert value == pytest.approx(0.0, abs=1e-15)  # what remains of a reward is its surprise
    np.testing.assert_allclose(slope, -SLOPE, atol=1e-14)
    # The batch's own mean as the baseline looks at the sample itself and is biased.
    centred = REWARDS[batches] - REWARDS[batches].mean(1, keepdims=True)
    score = np.eye(4)[batches] - PI
    biased = np.einsum("b,bk,bkd->d", law, centred, score) / size
    np.testing.assert_allclose(biased, SLOPE * (size - 1) / size, atol=1e-14)


def test_reinforce_losses_per_sample():
    """A loss is baseline minus reward, and so is its only gradient, the one in log pi."""
    batch, rewards = np.log(PI[None]).repeat(2, 0), np.stack([REWARDS, REWARDS[::-1] * 3.0])
    others = np.array([[np.delete(row, k).mean() for k in range(4)] for row in rewards])

    @functools.partial(jax.jit, static_argnames="loss")
    def run(*arrays, loss):
        total = lambda *x: (jnp.sum(loss(*x)), loss(*x))
        return jax.grad(total, argnums=tuple(range(len(arrays))), has_aux=True)(*arrays)

    baselines = np.full((2, 4), 0.3)
    slopes, losses = run(batch, rewards, baselines, loss=reinforce_loss)
    np.testing.assert_allclose(losses, 0.3 - rewards, rtol=1e-14)
    np.testing.assert_allclose(slopes[0], 0.3 - rewards, rtol=1e-14)
    np.testing.assert_array_equal(slopes[1:], 0.0)
    slopes, losses = run(batch, rewards, loss=rloo_loss)
    np.testing.assert_allclose(losses, others - rewards, rtol=1e-14)
    np.testing.assert_allclose(slopes[0], others - rewards, rtol=1e-14)
    np.testing.assert_array_equal(slopes[1], 0.0)


def test_the_posterior_loss_is_reinforce_of_the_penalised_reward():
    log_probs, reference = np.log(PI), np.log(P0)
    gain = REWARDS - BETA * (log_probs - reference)

    @functools.partial(jax.jit, static_argnames="loss")
    def run(log_probs, *, loss):
        return jax.value_and_grad(lambda x: jnp.sum(loss(x) * jnp.arange(1.0, 5.0)))(log_probs)

    posterior = run(log_probs, loss=lambda x: posterior_loss(x, reference, REWARDS, beta=BETA))
    plain = run(log_probs, loss=lambda x: reinforce_loss(x, gain))
    np.testing.assert_allclose(posterior[0], plain[0], rtol=1e-14)
    np.testing.assert_allclose(posterior[1], plain[1], rtol=1e-14)


# --- the reward of a token ------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [0.0, np.nan, -np.inf])
def test_penalised_rewards_of_tokens(garbage):
    """Every token has a penalty and the last one the score; their sum is the document's gain."""
    penalties = np.where(MASK, BETA * (TOKENS - REF_TOKENS), 0.0)
    expected = -penalties
    expected[0, 5] += SCORES[0]
    expected[1, 2] += SCORES[1]
    run = jax.jit(functools.partial(kl_penalised_rewards, beta=BETA))
    rewards = run(outside(TOKENS, garbage), outside(REF_TOKENS, garbage), SCORES, MASK)
    np.testing.assert_allclose(rewards, expected, rtol=1e-13)

    log_probs, reference = (np.where(MASK, x, 0.0).sum(1)[:2] for x in (TOKENS, REF_TOKENS))
    gain = -posterior_loss(log_probs, reference, SCORES[:2], beta=BETA)
    np.testing.assert_allclose(rewards.sum(1)[:2], gain, rtol=1e-13)


def test_no_gradient_passes_the_reward_of_a_token():
    total = lambda *x: jnp.sum(kl_penalised_rewards(*x, MASK, beta=BETA) ** 2)
    for slope in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(TOKENS, REF_TOKENS, SCORES):
        np.testing.assert_array_equal(slope, 0.0)


def test_a_beta_of_each_document():
    betas = np.array([0.5, 2.0, 0.0])
    rewards = jax.jit(kl_penalised_rewards)(TOKENS, REF_TOKENS, SCORES, MASK, beta=betas)
    for row, beta in enumerate(betas):
        one = kl_penalised_rewards(
            TOKENS[row], REF_TOKENS[row], SCORES[row], MASK[row], beta=float(beta)
        )
        np.testing.assert_allclose(rewards[row], one, rtol=1e-14)


# --- advantages -----------------------------------------------------------------------------------

advantages_of = jax.jit(generalised_advantages)


def by_definition(rewards, values, mask, discount, decay):
    """Returns `sum_u (gamma lambda)^(u - t) delta_u` over tokens u >= t, term by term."""
    advantages = np.zeros_like(rewards)
    for row in np.ndindex(mask.shape[:-1]):
        tokens = np.flatnonzero(mask[row])
        for i, t in enumerate(tokens):
            for j, u in enumerate(tokens[i:]):
                following = values[row][u + 1] if u != tokens[-1] else 0.0
                delta = rewards[row][u] + discount * following - values[row][u]
                advantages[row][t] += (discount * decay) ** j * delta
    return advantages


@pytest.mark.parametrize("garbage", [0.0, np.nan])
@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.8, 0.0)])
def test_generalised_advantages(discount, decay, garbage):
    rewards, values = outside(TOKEN_REWARDS, garbage), outside(VALUES, garbage)
    found = advantages_of(rewards, values, MASK, discount=discount, decay=decay)
    expected = by_definition(TOKEN_REWARDS, VALUES, MASK, discount, decay)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_array_equal(np.asarray(found)[~MASK], 0.0)


def test_extreme_decays_are_returns_and_single_steps():
    rewards, values = (np.where(MASK, x, 0.0) for x in (TOKEN_REWARDS, VALUES))
    to_go = rewards[:, ::-1].cumsum(1)[:, ::-1]
    found = advantages_of(rewards, values, MASK, decay=1.0)
    np.testing.assert_allclose(found, np.where(MASK, to_go - values, 0.0), atol=1e-14)
    following = np.pad(values[:, 1:], ((0, 0), (0, 1)))
    found = advantages_of(rewards, values, MASK, decay=0.0)
    np.testing.assert_allclose(found, np.where(MASK, rewards + following - values, 0.0), atol=1e-14)


def test_perfect_values_leave_no_advantage():
    """For a reward at the last token only, and any decay."""
    rewards = np.array([0.0, 0.0, 0.0, 3.0, 0.0])
    mask = np.array([False, True, True, True, False])
    for decay in (0.0, 0.95):
        found = advantages_of(rewards, np.full(5, 3.0), mask, decay=decay)
        np.testing.assert_allclose(found, 0.0, atol=1e-15)


def test_advantages_of_any_leading_axes():
    arrays = [np.stack([x, x[::-1]]) for x in (TOKEN_REWARDS, VALUES, MASK)]
    found = np.asarray(advantages_of(*arrays))
    flat = np.asarray(advantages_of(TOKEN_REWARDS, VALUES, MASK))
    np.testing.assert_allclose(found, np.stack([flat, flat[::-1]]), atol=1e-15)
    one = advantages_of(TOKEN_REWARDS[0], VALUES[0], MASK[0])
    np.testing.assert_allclose(one, flat[0], atol=1e-15)


def test_no_gradient_passes_the_advantages():
    total = lambda *x: jnp.sum(generalised_advantages(*x, MASK) ** 2)
    for slope in jax.jit(jax.grad(total, argnums=(0, 1)))(TOKEN_REWARDS, VALUES):
        np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf])
def test_whiten(garbage):
    counted = VALUES[MASK]
    expected = np.zeros_like(VALUES)
    expected[MASK] = (counted - counted.mean()) / np.sqrt(counted.var() + 1e-8)
    found = np.asarray(jax.jit(whiten)(outside(VALUES, garbage), MASK))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    assert found[MASK].std() == pytest.approx(1.0, abs=1e-6)


def test_whiten_of_equal_values_and_of_none_is_0():
    for values, mask in [(np.full((3, 6), 2.0), MASK), (VALUES, np.zeros((3, 6), bool))]:
        np.testing.assert_array_equal(jax.jit(whiten)(values, mask), np.zeros((3, 6)))


# --- PPO ------------------------------------------------------------------------------------------

ADVANTAGES = np.random.default_rng(2).normal(0.0, 1.0, (3, 6))
CLIP = 0.2


@jax.jit
def ppo(tokens, behaviour, advantages, mask):
    """Returns losses, and the gradients of their sum in the first three arguments."""
    total = lambda *x: (jnp.sum(ppo_loss(*x, mask, clip=CLIP)), ppo_loss(*x, mask, clip=CLIP))
    slopes, losses = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(tokens, behaviour, advantages)
    return losses, slopes


@pytest.mark.parametrize("garbage", [0.0, np.nan, -np.inf])
def test_ppo_loss_and_its_gradient(garbage):
    behaviour = TOKENS + np.random.default_rng(3).normal(0.0, 0.4, (3, 6))
    ratios = np.exp(TOKENS - behaviour)
    clipped = np.clip(ratios, 1 - CLIP, 1 + CLIP) * ADVANTAGES
    terms = np.minimum(ratios * ADVANTAGES, clipped)
    arrays = [outside(x, garbage) for x in (TOKENS, behaviour, ADVANTAGES)]
    losses, (slope, *others) = ppo(*arrays, MASK)
    np.testing.assert_allclose(losses, -np.where(MASK, terms, 0.0).sum(1), rtol=1e-13)

    moved_too_far = ratios * ADVANTAGES > clipped
    assert (moved_too_far & MASK).any() and (~moved_too_far & MASK).any()
    expected = np.where(MASK & ~moved_too_far, -ratios * ADVANTAGES, 0.0)
    np.testing.assert_allclose(slope, expected, rtol=1e-13)
    np.testing.assert_array_equal(others, 0.0)


def test_ppo_stops_where_the_ratio_has_left_the_trust_region():
    """A ratio too far in the advantage's direction has no gradient, in the other the full one."""
    behaviour, mask = np.full(4, -1.0), np.ones(4, bool)
    ratios, advantages = np.array([1.5, 0.5, 1.5, 0.5]), np.array([2.0, -2.0, -2.0, 2.0])
    loss, (slope, _, _) = ppo(behaviour + np.log(ratios), behaviour, advantages, mask)
    assert loss == pytest.approx(-(1.2 * 2.0 - 0.8 * 2.0 - 1.5 * 2.0 + 0.5 * 2.0), rel=1e-13)
    np.testing.assert_allclose(slope, [0.0, 0.0, 3.0, -1.0], atol=1e-13)


def test_on_policy_ppo_is_reinforce():
    losses, (slope, _, _) = ppo(TOKENS, TOKENS, ADVANTAGES, MASK)
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(jnp.where(MASK, reinforce_loss(x, ADVANTAGES), 0)))
    )
    np.testing.assert_allclose(slope, gradient(TOKENS), rtol=1e-13)
    np.testing.assert_allclose(losses, -np.where(MASK, ADVANTAGES, 0.0).sum(1), rtol=1e-13)
    assert losses[2] == 0.0


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf])
def test_value_loss_and_its_gradient(garbage):
    @jax.jit
    def run(values, targets):
        total = lambda *x: (jnp.sum(value_loss(*x, MASK)), value_loss(*x, MASK))
        return jax.grad(total, argnums=(0, 1), has_aux=True)(values, targets)

    slopes, losses = run(outside(VALUES, garbage), outside(TOKEN_REWARDS, garbage))
    error = np.where(MASK, VALUES - TOKEN_REWARDS, 0.0)
    np.testing.assert_allclose(losses, (error**2).sum(1) / 2, rtol=1e-13)
    np.testing.assert_allclose(slopes[0], error, rtol=1e-13)
    np.testing.assert_array_equal(slopes[1], 0.0)


def test_clipped_value_loss_and_its_gradient():
    """No gradient passes where a value has gone further than the clip towards its target."""
    old = VALUES + np.array([[0.0, 0.0, 0.3, -0.3, 0.05, 0.3]])

    @jax.jit
    def run(values, old):
        total = lambda *x: (
            jnp.sum(found := value_loss(*x, MASK, old_values=old, clip=0.1)),
            found,
        )
        return jax.grad(total, argnums=(0, 1), has_aux=True)(values, TOKEN_REWARDS)

    slopes, losses = run(VALUES, old)
    far = (VALUES - TOKEN_REWARDS) ** 2
    near = (np.clip(VALUES, old - 0.1, old + 0.1) - TOKEN_REWARDS) ** 2
    np.testing.assert_allclose(losses, np.where(MASK, np.maximum(far, near), 0).sum(1) / 2)
    is_stopped = near > far
    expected = np.where(MASK & ~is_stopped, VALUES - TOKEN_REWARDS, 0.0)
    np.testing.assert_allclose(slopes[0], expected, rtol=1e-13)
    assert 0 < (MASK & is_stopped).sum() < MASK.sum()
    np.testing.assert_array_equal(slopes[1], 0.0)
    np.testing.assert_allclose(run(VALUES, VALUES)[0][0], np.where(MASK, VALUES - TOKEN_REWARDS, 0))
    for alone in ({"clip": 0.1}, {"old_values": old}):
        with pytest.raises(AssertionError, match="expected both or neither"):
            value_loss(jnp.asarray(VALUES), jnp.asarray(TOKEN_REWARDS), jnp.asarray(MASK), **alone)


def test_gradients():
    mask = jnp.asarray(MASK)
    tokens, behaviour = jnp.asarray(TOKENS), jnp.asarray(TOKENS + 0.05)
    ratio_loss = jax.jit(lambda x: ppo_loss(x, behaviour, jnp.asarray(ADVANTAGES), mask))
    check_grads(ratio_loss, (tokens,), order=1, modes=["rev"])
    check_grads(jax.jit(lambda v: value_loss(v, tokens, mask)), (jnp.asarray(VALUES),), order=1)


def test_beta_follows_the_kl_to_its_target():
    """The relative error is clipped to a fifth, and beta moves by n / horizon of it."""
    kl = np.array([0.0, 5.0, 5.7, 6.0, 6.6, 7.2, 100.0])  # -1, -1/6, -.05, 0, .1, .2, far above
    step = np.array([-0.2, -1 / 6, -0.05, 0.0, 0.1, 0.2, 0.2])
    found = jax.jit(lambda kl: adapt_beta(0.3, kl, target=6.0, num_samples=32, horizon=128.0))(kl)
    np.testing.assert_allclose(found, 0.3 * (1 + step / 4), rtol=1e-14)


# --- bad input ------------------------------------------------------------------------------------


def test_without_rlax_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rlax", None)
    message = r"need rlax, which cannot be imported .*: pip install 'shatter-lm\[rl\]'"
    with pytest.raises(ImportError, match=message):
        ppo_loss(TOKENS, TOKENS, ADVANTAGES, MASK)
    with pytest.raises(ImportError, match=message):
        generalised_advantages(TOKEN_REWARDS, VALUES, MASK)


def test_a_single_sample_has_no_others():
    for shape in [(4, 1), ()]:
        samples = jax.ShapeDtypeStruct(shape, float)
        with pytest.raises(AssertionError, match=r"at least two samples.*found shape"):
            jax.eval_shape(rloo_loss, samples, samples)


def test_a_baseline_of_another_shape_is_refused():
    """Broadcasting a column with a row would combine every sample with every baseline."""
    samples = jax.ShapeDtypeStruct((4,), float)
    for shape in [(4, 1), (3,)]:
        with pytest.raises(AssertionError):
            jax.eval_shape(reinforce_loss, samples, samples, jax.ShapeDtypeStruct(shape, float))


FLOATS, MASKS = jax.ShapeDtypeStruct((4, 3), float), jax.ShapeDtypeStruct((4, 3), bool)
ROWS = jax.ShapeDtypeStruct((4,), float)
ENTRIES = {
    "reinforce": (reinforce_loss, [FLOATS, FLOATS], (4, 3)),
    "rloo": (rloo_loss, [FLOATS, FLOATS], (4, 3)),
    "penalised": (
        functools.partial(kl_penalised_rewards, beta=BETA),
        [FLOATS, FLOATS, ROWS, MASKS],
        (4, 3),
    ),
    "advantages": (generalised_advantages, [FLOATS, FLOATS, MASKS], (4, 3)),
    "whiten": (whiten, [FLOATS, MASKS], (4, 3)),
    "ppo": (ppo_loss, [FLOATS, FLOATS, FLOATS, MASKS], (4,)),
    "value": (value_loss, [FLOATS, FLOATS, MASKS], (4,)),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_wrong_shapes_and_types_raise_while_tracing(name):
    function, right, shape = ENTRIES[name]
    assert jax.eval_shape(function, *right).shape == shape
    for place, argument in enumerate(right):
        wrong = [jax.ShapeDtypeStruct(s, argument.dtype) for s in [(3, 3), (4, 2), (3,), (4, 3, 1)]]
        if argument is MASKS:
            wrong.append(jax.ShapeDtypeStruct((4, 3), float))
        if place == 0:
            wrong.append(jax.ShapeDtypeStruct((4, 3), int))
        for bad in wrong:
            with pytest.raises(AssertionError):
                jax.eval_shape(function, *right[:place], bad, *right[place + 1 :])


def test_whiten_of_equal_values_in_float32():
    """The rounding error of the mean must not be scaled up to an advantage."""
    values = jnp.full((7, 9), 1000.1, jnp.float32)
    white = jax.jit(whiten)(values, jnp.ones((7, 9), bool))
    np.testing.assert_array_equal(white, 0.0)


@pytest.mark.parametrize(
    "wrong", [{"target": 0.0, "horizon": 10.0}, {"target": 1.0, "horizon": 0.0}]
)
def test_a_target_or_horizon_not_above_zero_is_named(wrong):
    with pytest.raises(ValueError, match=r"(target|horizon) must be above 0, found 0.0"):
        adapt_beta(0.1, 1.0, num_samples=4, **wrong)
