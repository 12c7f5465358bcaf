import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import numerics

pytestmark = pytest.mark.usefixtures("float64")

MASK = np.array([[True, False, True, False], [False, True, False, False], [False] * 4])
VALUES = np.array([[1.0, np.nan, 2.5, np.inf], [-np.inf, -3.0, np.nan, 7.0], [np.nan] * 4])
# Three laws on four points; impossible points in either, in both, and a point mass.
P = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
Q = np.array([[0.4, 0.3, 0.2, 0.1], [0.2, 0.7, 0.1, 0.0], [0.25, 0.25, 0.5, 0.0]])


def logs(law: np.ndarray) -> jax.Array:
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(law))


def xlogy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x * np.log(np.where(x > 0, y, 1.0)), 0.0)


def test_masked_sum_and_mean_see_only_the_mask():
    values, mask = jnp.asarray(VALUES), jnp.asarray(MASK)
    np.testing.assert_array_equal(numerics.masked_sum(values, mask), [3.5, -3.0, 0.0])
    np.testing.assert_array_equal(numerics.masked_mean(values, mask), [1.75, -3.0, 0.0])
    np.testing.assert_array_equal(numerics.masked_sum(values, mask, axis=0), [1.0, -3.0, 2.5, 0.0])
    np.testing.assert_array_equal(numerics.masked_mean(values, mask, axis=0), [1.0, -3.0, 2.5, 0.0])


def test_gradients_of_masked_sum_and_mean_stop_at_the_mask():
    values, mask = jnp.asarray(VALUES), jnp.asarray(MASK)
    of_sum = jax.grad(lambda values: jnp.sum(numerics.masked_sum(values, mask)))(values)
    np.testing.assert_array_equal(of_sum, MASK.astype(float))
    of_mean = jax.grad(lambda values: jnp.sum(numerics.masked_mean(values, mask)))(values)
    np.testing.assert_array_equal(of_mean, MASK / np.maximum(MASK.sum(1, keepdims=True), 1))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    ones = jnp.ones(4097, dtype)  # 4097 is no number of either type
    total = numerics.masked_sum(ones, jnp.ones(4097, bool))
    assert total.dtype == jnp.float32
    assert total == 4097.0
    large = jnp.full(100, 6e4, dtype)  # the sum overflows float16
    np.testing.assert_allclose(
        numerics.masked_sum(large, jnp.ones(100, bool)), 100 * float(large[0]), rtol=1e-6
    )
    np.testing.assert_allclose(numerics.masked_mean(large, jnp.ones(100, bool)), float(large[0]))


def test_double_precision_stays_double():
    assert numerics.masked_sum(jnp.ones(3), jnp.ones(3, bool)).dtype == jnp.float64


def test_kl_divergence():
    expected = [(p * np.log(p / q)).sum() for p, q in [(P[0], Q[0]), (P[1, :2], Q[1, :2])]]
    expected.append(np.log(4.0))
    np.testing.assert_allclose(numerics.kl_divergence(logs(P), logs(Q)), expected, rtol=1e-14)
    np.testing.assert_array_equal(numerics.kl_divergence(logs(P), logs(P)), np.zeros(3))
    assert numerics.kl_divergence(logs(Q[2]), logs(P[2])) == np.inf  # p where q cannot be


def test_gradients_of_kl_divergence_with_impossible_points():
    by_p, by_q = jax.jit(
        jax.grad(lambda p, q: jnp.sum(numerics.kl_divergence(p, q)), argnums=(0, 1))
    )(logs(P), logs(Q))
    np.testing.assert_allclose(by_q, -P, rtol=1e-14)
    np.testing.assert_allclose(by_p, xlogy(P, P) - xlogy(P, Q) + P, rtol=1e-14)


def test_log_zero_counts_as_impossible():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        assert jnp.exp(jnp.float32(numerics.LOG_ZERO).astype(dtype)) == 0.0
    finite = jnp.maximum(logs(P), numerics.LOG_ZERO)
    for statistic in (
        lambda law: numerics.kl_divergence(law, logs(Q)),
        lambda law: numerics.total_variation(law, logs(Q)),
        numerics.entropy,
    ):
        np.testing.assert_array_equal(statistic(finite), statistic(logs(P)))


def test_total_variation():
    np.testing.assert_allclose(
        numerics.total_variation(logs(P), logs(Q)), [0.4, 0.3, 0.75], rtol=1e-14
    )
    np.testing.assert_array_equal(numerics.total_variation(logs(P), logs(P)), np.zeros(3))
    disjoint = logs(np.array([0.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(numerics.total_variation(logs(P[1]), disjoint), 1.0, rtol=1e-14)


def test_entropy():
    expected = [-(P[0] * np.log(P[0])).sum(), np.log(2.0), 0.0]
    np.testing.assert_allclose(numerics.entropy(logs(P)), expected, rtol=1e-14)
    gradient = jax.grad(lambda law: jnp.sum(numerics.entropy(law)))(logs(P))
    np.testing.assert_allclose(gradient, -xlogy(P, P) - P, rtol=1e-14)


def test_expectation_ignores_impossible_points():
    values = np.array([1.0, 0.0, -0.5, 2.0])
    np.testing.assert_allclose(
        numerics.expectation(logs(P), jnp.tile(jnp.asarray(values), (3, 1))), P @ values, rtol=1e-14
    )
    with_infinity = jnp.array([[1.0, 2.0, np.inf, -np.inf]])
    value, gradient = jax.value_and_grad(
        lambda law: jnp.sum(numerics.expectation(law, with_infinity))
    )(logs(P[1:2]))
    assert value == pytest.approx(1.5, rel=1e-14)
    np.testing.assert_allclose(gradient, [[0.5, 1.0, 0.0, 0.0]], rtol=1e-14)
