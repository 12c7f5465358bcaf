import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from shatter.losses import exact_posterior_loss, kl_k1, kl_k2, kl_k3, posterior_loss

pytestmark = pytest.mark.usefixtures("float64")

REWARDS = np.array([1.0, 0.0, -0.5, 2.0])
P0 = np.array([0.1, 0.2, 0.3, 0.4])
BETA = 0.5
LOGITS = np.random.default_rng(0).normal(0.0, 1.0, 4)
PI = np.exp(LOGITS) / np.exp(LOGITS).sum()

STRENGTHS = P0 * np.exp(REWARDS / BETA)
POSTERIOR = STRENGTHS / STRENGTHS.sum()
BETA_LOG_Z = BETA * np.log(STRENGTHS.sum())


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def slope_of_mean(policy: np.ndarray, values: np.ndarray) -> np.ndarray:
    """E[(f - E f) grad log pi] of a softmax policy: the gradient of E_pi f with f held fixed."""
    return policy * (values - (policy * values).sum())


@jax.jit
def sampled(logits):
    """Expected values and gradients of the sampled losses: samples of pi, enumerated.

    The samples' law is held fixed, as it is when a batch has been drawn.
    """
    law = jax.lax.stop_gradient(jax.nn.softmax(logits))
    reference, rewards = jnp.log(jnp.asarray(P0)), jnp.asarray(REWARDS)
    losses = {
        "posterior": lambda x: posterior_loss(x, reference, rewards, beta=BETA),
        "k1": lambda x: kl_k1(x, reference),
        "k2": lambda x: kl_k2(x, reference),
        "k3": lambda x: kl_k3(x, reference),
    }
    return {
        name: jax.value_and_grad(lambda z, loss=loss: jnp.sum(law * loss(jax.nn.log_softmax(z))))(
            logits
        )
        for name, loss in losses.items()
    }


@jax.jit
def exact(logits):
    def loss(logits):
        return exact_posterior_loss(
            jax.nn.log_softmax(logits), jnp.log(jnp.asarray(P0)), jnp.asarray(REWARDS), beta=BETA
        )

    return jax.value_and_grad(loss)(logits)


def test_posterior_in_numbers():
    np.testing.assert_allclose(POSTERIOR, [0.0322828, 0.0087380, 0.0048218, 0.9541574], atol=5e-8)
    assert BETA_LOG_Z == pytest.approx(1.5653179, abs=5e-8)
    value, slope = exact(np.log(POSTERIOR))
    assert -value == pytest.approx(BETA_LOG_Z, rel=1e-14)
    np.testing.assert_allclose(slope, 0.0, atol=1e-14)


def test_exact_loss_is_the_distance_to_the_posterior():
    """-J_KL = beta KL(pi || p*) - beta log Z, in value and gradient, for every pi."""
    for policy in (PI, P0, np.array([0.97, 0.01, 0.01, 0.01])):
        value, slope = exact(np.log(policy))
        objective = (policy * REWARDS).sum() - BETA * kl(policy, P0)
        assert -value == pytest.approx(objective, rel=1e-13)
        assert value == pytest.approx(BETA * kl(policy, POSTERIOR) - BETA_LOG_Z, rel=1e-13)
        expected = BETA * slope_of_mean(policy, np.log(policy / POSTERIOR))
        np.testing.assert_allclose(slope, expected, atol=1e-14)


def test_expected_score_function_loss_is_exact():
    value, slope = sampled(LOGITS)["posterior"]
    exact_value, exact_slope = exact(LOGITS)
    assert value == pytest.approx(float(exact_value), rel=1e-13)
    np.testing.assert_allclose(slope, exact_slope, atol=1e-14)
    gain = REWARDS - BETA * np.log(PI / P0)
    np.testing.assert_allclose(slope, -slope_of_mean(PI, gain), atol=1e-14)


def test_score_function_loss_per_sample():
    """Minus the gain; d/d log pi of it is the same number; nothing flows elsewhere."""
    log_probs, reference = np.log(PI), np.log(P0)
    gain = REWARDS - BETA * (log_probs - reference)

    def total(*arrays):
        losses = posterior_loss(*arrays, beta=BETA)
        return jnp.sum(losses), losses

    slopes, losses = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
        log_probs, reference, REWARDS
    )
    np.testing.assert_allclose(losses, -gain, rtol=1e-14)
    np.testing.assert_allclose(slopes[0], -gain, rtol=1e-14)
    np.testing.assert_array_equal(slopes[1:], 0.0)


def test_per_token_form_with_reward_to_go():
    """Two tokens a document, gamma = 1: each token's loss counts what comes after it only.

    Documents in the order 00 01 10 11; a law of the first token and one of the second for each.
    """
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=2), rng.normal(size=(2, 2))
    reference_first, reference_second = (np.log(p) for p in ([0.3, 0.7], [[0.5, 0.5], [0.1, 0.9]]))

    def token_log_probs(first, second):
        first, second = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
        return jnp.stack([jnp.repeat(first, 2), second.reshape(-1)], -1)  # [D, T]

    @jax.jit
    def slopes(first, second):
        reference = token_log_probs(jnp.asarray(reference_first), jnp.asarray(reference_second))
        rewards = jnp.asarray(REWARDS)
        tokens = jax.lax.stop_gradient(token_log_probs(first, second))
        law = jnp.exp(jnp.sum(tokens, -1))
        after = jnp.stack([tokens[:, 1] - reference[:, 1], jnp.zeros(4)], -1)  # log-ratio to come

        def per_token(first, second):
            to_go = rewards[:, None] - BETA * after
            losses = posterior_loss(token_log_probs(first, second), reference, to_go, beta=BETA)
            return jnp.sum(law * jnp.sum(losses, -1))

        def whole(first, second):
            log_probs = jnp.sum(token_log_probs(first, second), -1)
            return exact_posterior_loss(log_probs, jnp.sum(reference, -1), rewards, beta=BETA)

        return tuple(jax.grad(f, argnums=(0, 1))(first, second) for f in (per_token, whole))

    per_token, whole = slopes(first, second)
    for mine, expected in zip(per_token, whole, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-14)
        assert np.abs(expected).max() > 1e-2


def test_expected_values_of_the_kl_estimators():
    found = sampled(LOGITS)
    assert found["k1"][0] == pytest.approx(kl(PI, P0), rel=1e-13)
    assert found["k3"][0] == pytest.approx(kl(PI, P0), rel=1e-13)
    # k2 is biased in value.
    assert found["k2"][0] == pytest.approx((PI * np.log(PI / P0) ** 2).sum() / 2, rel=1e-13)
    assert abs(found["k2"][0] - kl(PI, P0)) > 5e-3


def test_expected_gradients_of_the_kl_estimators():
    found = sampled(LOGITS)
    reverse = slope_of_mean(PI, np.log(PI / P0))  # of KL(pi || p0)
    forward = PI - P0  # of KL(p0 || pi)
    np.testing.assert_allclose(found["k1"][1], 0.0, atol=1e-15)
    np.testing.assert_allclose(found["k2"][1], reverse, atol=1e-14)
    np.testing.assert_allclose(found["k3"][1], forward, atol=1e-14)
    assert np.abs(reverse - forward).max() > 1e-2


def test_kl_estimators_per_sample():
    ratios = np.array([-30.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0])  # log pi - log p0
    k1, k2, k3 = jax.jit(lambda *x: [kl_k1(*x), kl_k2(*x), kl_k3(*x)])(ratios, np.zeros(7))
    np.testing.assert_array_equal(k1, ratios)
    np.testing.assert_allclose(k2, ratios**2 / 2, rtol=1e-14)
    # exp(-x) - 1 + x, by its series where it cancels
    series = np.where(np.abs(ratios) < 1e-6, ratios**2 / 2, np.exp(-ratios) - 1.0 + ratios)
    np.testing.assert_allclose(k3, series, rtol=1e-12, atol=1e-24)
    assert (np.asarray(k3) >= 0.0).all()


def test_gradients():
    log_probs, reference = jnp.asarray(np.log(PI)), jnp.asarray(np.log(P0))

    @jax.jit
    def estimates(log_probs, reference):
        return [estimator(log_probs, reference) for estimator in (kl_k1, kl_k2, kl_k3)]

    check_grads(estimates, (log_probs, reference), order=1)

    @jax.jit
    def loss(logits, reference, rewards):
        return exact_posterior_loss(jax.nn.log_softmax(logits), reference, rewards, beta=BETA)

    check_grads(loss, (jnp.asarray(LOGITS), reference, jnp.asarray(REWARDS)), order=1)


def test_leading_axes_and_a_beta_of_each():
    arrays = [np.tile(x, (2, 3, 1)) for x in (np.log(PI), np.log(P0), REWARDS)]
    betas = np.array([[0.5, 1.0, 2.0], [3.0, 4.0, 5.0]])
    values = jax.jit(exact_posterior_loss)(*arrays, beta=betas)
    np.testing.assert_allclose(values, betas * kl(PI, P0) - (PI * REWARDS).sum(), rtol=1e-13)
    assert jax.eval_shape(posterior_loss, *arrays, beta=1.0).shape == (2, 3, 4)


FLOATS = jax.ShapeDtypeStruct((4,), float)


@pytest.mark.parametrize(
    "wrong", [jax.ShapeDtypeStruct((3,), float), jax.ShapeDtypeStruct((4,), int)]
)
@pytest.mark.parametrize("place", [0, 1])
def test_wrong_shapes_and_types_raise_while_tracing(wrong, place):
    log_probs = [FLOATS, FLOATS]
    log_probs[place] = wrong
    for estimator in (kl_k1, kl_k2, kl_k3):
        with pytest.raises(AssertionError):
            jax.eval_shape(estimator, *log_probs)
    for loss in (posterior_loss, exact_posterior_loss):
        with pytest.raises(AssertionError):
            jax.eval_shape(lambda *x, loss=loss: loss(*x, beta=BETA), *log_probs, FLOATS)
        with pytest.raises(AssertionError):
            jax.eval_shape(
                lambda *x, loss=loss: loss(*x, beta=BETA),
                FLOATS,
                FLOATS,
                jax.ShapeDtypeStruct((), float),
            )
