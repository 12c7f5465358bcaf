"""GRPO against independent computations in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.losses import grpo_advantages, grpo_loss

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
TOKENS, REF_TOKENS, VALUES = np.random.default_rng(1).normal(-1.0, 1.0, (3, 3, 6))


def outside(array: np.ndarray, garbage: float) -> np.ndarray:
    """Returns the array with garbage where the mask is false."""
    return np.where(MASK, array, garbage)


def test_advantages_of_a_group():
    rewards = np.random.default_rng(4).normal(0.0, 2.0, (2, 3, 5))
    centred = rewards - rewards.mean(-1, keepdims=True)
    deviations = rewards.std(-1, ddof=1, keepdims=True)
    found = jax.jit(grpo_advantages)(rewards)
    np.testing.assert_allclose(found, centred / (deviations + 1e-4), rtol=1e-12)
    whole = jax.jit(grpo_advantages)(rewards, jnp.full((1, 1, 1), rewards.std()))
    np.testing.assert_allclose(whole, centred / (rewards.std() + 1e-4), rtol=1e-12)
    np.testing.assert_array_equal(jax.jit(grpo_advantages)(jnp.full((2, 3), 7.0)), 0.0)


def test_a_group_of_one_is_refused():
    with pytest.raises(AssertionError, match=r"K >= 2, found shape \(4, 1\); draw more samples"):
        grpo_advantages(jnp.ones((4, 1)))


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf])
def test_grpo_loss_and_its_gradient(garbage):
    """Clipped ratios have no gradient; none passes old, reference and advantages."""
    advantages, old, ref = np.array([1.0, -2.0, 3.0]), TOKENS + 0.3 * VALUES, REF_TOKENS

    @jax.jit
    def run(own, old, ref, advantages):
        total = lambda *x: (jnp.sum(loss := grpo_loss(*x, MASK, beta=BETA, clip=0.2)), loss)
        return jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(own, old, ref, advantages)

    outer = (outside(array, garbage) for array in (TOKENS, old, ref))
    (slope, *others), losses = run(*outer, advantages)
    for other in others:
        np.testing.assert_array_equal(other, 0.0)
    ratio, wide = np.exp(TOKENS - old), advantages[:, None]
    surrogate = -np.minimum(ratio * wide, np.clip(ratio, 0.8, 1.2) * wide)
    penalty = np.exp(ref - TOKENS) - 1 - (ref - TOKENS)
    each = np.where(MASK, surrogate + BETA * penalty, 0.0)
    np.testing.assert_allclose(losses, each.sum(1), rtol=1e-12)
    is_clipped = np.where(wide > 0, ratio > 1.2, ratio < 0.8)
    expected = np.where(is_clipped, 0.0, -ratio * wide) + BETA * (1 - np.exp(ref - TOKENS))
    np.testing.assert_allclose(slope, np.where(MASK, expected, 0.0), rtol=1e-12)
    assert (is_clipped & MASK).any() and (~is_clipped & MASK).any()


def test_grpo_clips_high_ratios_elsewhere_than_low_ones():
    own, one = jnp.log(jnp.array([[1.25, 1.35]])), jnp.ones(1)
    zeros, mask = jnp.zeros_like(own), jnp.ones_like(own, bool)
    run = functools.partial(grpo_loss, own, zeros, own, one, mask, beta=0.0)
    assert run(clip=0.2) == pytest.approx(-2.4)
    assert run(clip=0.2, clip_high=0.28) == pytest.approx(-1.25 - 1.28)


def test_on_policy_grpo_is_reinforce_and_its_expected_penalty_a_forward_kl():
    """Over tokens of pi the mean gradient of the penalty is that of KL(reference || policy)."""

    @jax.jit
    @jax.grad
    def mean_loss(logits):
        log_probs = jax.nn.log_softmax(logits)[:, None]
        law = jax.lax.stop_gradient(jnp.exp(log_probs[:, 0]))
        old, ref = jax.lax.stop_gradient(log_probs), jnp.log(P0)[:, None]
        mask = jnp.ones_like(log_probs, bool)
        return jnp.sum(law * grpo_loss(log_probs, old, ref, jnp.asarray(REWARDS), mask, beta=BETA))

    np.testing.assert_allclose(mean_loss(LOGITS), -SLOPE + BETA * (PI - P0), atol=1e-14)


@pytest.mark.parametrize("place", range(5))
def test_wrong_shapes_and_types_raise_while_tracing(place: int):
    struct = jax.ShapeDtypeStruct
    right = [*[struct((4, 3), float)] * 3, struct((4,), float), struct((4, 3), bool)]
    function = functools.partial(grpo_loss, beta=BETA)
    assert jax.eval_shape(function, *right).shape == (4,)
    wrong = [struct(shape, right[place].dtype) for shape in [(3, 3), (4, 2), (3,), (4, 3, 1)]]
    wrong += [struct((4, 3), float)] if place == 4 else []
    wrong += [struct((4, 3), int)] if place < 3 else []
    for bad in wrong:
        with pytest.raises(AssertionError):
            jax.eval_shape(function, *right[:place], bad, *right[place + 1 :])


def test_a_beta_of_every_document():
    """It is that of the document's tokens, also where there are as many tokens as documents."""
    own, ref, mask = TOKENS[:, :3], REF_TOKENS[:, :3], MASK[:, :3]
    run = lambda beta: grpo_loss(own, own, ref, np.ones(3), mask, beta=beta)
    each = run(np.arange(3.0))
    for row in range(3):
        assert each[row] == pytest.approx(float(run(float(row))[row]), abs=1e-12)
