import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter import numerics

pytestmark = pytest.mark.usefixtures("float64")

MASK = np.array([[True, False, True, False], [False, True, False, False], [False] * 4])
VALUES = np.array([[1.0, np.nan, 2.5, np.inf], [-np.inf, -3.0, np.nan, 7.0], [np.nan] * 4])
# Three laws on four points; impossible points in either, in both, and a point mass.
P = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
Q = np.array([[0.4, 0.3, 0.2, 0.1], [0.2, 0.7, 0.1, 0.0], [0.25, 0.25, 0.5, 0.0]])


masked_sum = jax.jit(numerics.masked_sum, static_argnames="axis")
masked_mean = jax.jit(numerics.masked_mean, static_argnames="axis")
kl_divergence = jax.jit(numerics.kl_divergence)
total_variation = jax.jit(numerics.total_variation)
entropy = jax.jit(numerics.entropy)
expectation = jax.jit(numerics.expectation)
log_mean_exp = jax.jit(numerics.log_mean_exp, static_argnames="axis")


def logs(law: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(law)


def xlogy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x * np.log(np.where(x > 0, y, 1.0)), 0.0)


@pytest.mark.parametrize("bad", [0.0, -1.5, np.nan, np.array([1.0, 0.0]), np.float32(-np.inf), 0])
def test_numbers_not_above_zero_are_refused_by_name(bad):
    numerics.assert_positive(beta=1e-300, clip=1, horizon=np.array([1.0, np.inf]))
    with pytest.raises(ValueError) as error:
        numerics.assert_positive(beta=0.1, clip=bad)
    assert str(error.value) == f"clip must be above 0, found {bad}"


def test_traced_values_not_above_zero_raise_under_checkify():
    def double(beta):
        numerics.assert_positive(beta=beta)
        return 2 * beta

    checked = jax.jit(checkify.checkify(double))
    checked(np.array([1.0, 1e-300]))[0].throw()
    for bad, found in [(0.0, "0.0"), (-1.5, "-1.5"), (np.nan, "nan")]:
        with pytest.raises(checkify.JaxRuntimeError, match=f"beta must be above 0, found {found}"):
            checked(np.array([1.0, bad]))[0].throw()
    assert jax.jit(double)(-1.0) == -2.0
    with pytest.raises(ValueError, match=r"beta must be above 0, found -1"):
        double(jnp.asarray(-1.0))  # an array, but not traced


def test_masked_sum_and_mean_see_only_the_mask():
    np.testing.assert_array_equal(masked_sum(VALUES, MASK), [3.5, -3.0, 0.0])
    np.testing.assert_array_equal(masked_mean(VALUES, MASK), [1.75, -3.0, 0.0])
    np.testing.assert_array_equal(masked_sum(VALUES, MASK, axis=0), [1.0, -3.0, 2.5, 0.0])
    np.testing.assert_array_equal(masked_mean(VALUES, MASK, axis=0), [1.0, -3.0, 2.5, 0.0])


def test_gradients_of_masked_sum_and_mean_stop_at_the_mask():
    def slope(mean):
        return jax.jit(jax.grad(lambda values: jnp.sum(mean(values, MASK))))(VALUES)

    np.testing.assert_array_equal(slope(masked_sum), MASK.astype(float))
    of_mean = slope(masked_mean)
    np.testing.assert_array_equal(of_mean, MASK / np.maximum(MASK.sum(1, keepdims=True), 1))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    mask = np.ones(4097, bool)  # 4097 is no number of either type
    total = masked_sum(np.ones(4097, dtype), mask)
    assert total.dtype == jnp.float32
    assert total == 4097.0
    large = np.full(4097, 6e4, dtype)  # the sum overflows float16
    np.testing.assert_allclose(masked_mean(large, mask), float(large[0]), rtol=1e-6)


def test_double_precision_stays_double():
    assert masked_sum(VALUES, MASK).dtype == jnp.float64


def test_kl_divergence():
    expected = [(p * np.log(p / q)).sum() for p, q in [(P[0], Q[0]), (P[1, :2], Q[1, :2])]]
    expected.append(np.log(4.0))
    np.testing.assert_allclose(kl_divergence(logs(P), logs(Q)), expected, rtol=1e-14)
    np.testing.assert_array_equal(kl_divergence(logs(P), logs(P)), np.zeros(3))
    assert np.asarray(kl_divergence(logs(Q), logs(P)))[2] == np.inf  # p where q cannot be


def test_gradients_of_kl_divergence_with_impossible_points():
    by_p, by_q = jax.jit(jax.grad(lambda p, q: jnp.sum(kl_divergence(p, q)), argnums=(0, 1)))(
        logs(P), logs(Q)
    )
    np.testing.assert_allclose(by_q, -P, rtol=1e-14)
    np.testing.assert_allclose(by_p, xlogy(P, P) - xlogy(P, Q) + P, rtol=1e-14)


def test_log_zero_counts_as_impossible():
    dtypes = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
    log_zero = jnp.float32(numerics.LOG_ZERO)
    zeros = jax.jit(lambda x: [jnp.exp(x.astype(dtype)) for dtype in dtypes])(log_zero)
    assert [zero.item() for zero in zeros] == [0.0] * 4
    finite = np.maximum(logs(P), numerics.LOG_ZERO)
    for statistic in (
        lambda law: kl_divergence(law, logs(Q)),
        lambda law: total_variation(law, logs(Q)),
        entropy,
    ):
        np.testing.assert_array_equal(statistic(finite), statistic(logs(P)))


def test_total_variation():
    np.testing.assert_allclose(total_variation(logs(P), logs(Q)), [0.4, 0.3, 0.75], rtol=1e-14)
    np.testing.assert_array_equal(total_variation(logs(P), logs(P)), np.zeros(3))
    disjoint = np.roll(np.eye(4)[:3], -1, axis=1)  # at points 3, 0 and 1
    np.testing.assert_allclose(
        total_variation(logs(P), logs(disjoint)), [0.6, 0.5, 0.0], atol=1e-15
    )
    np.testing.assert_allclose(total_variation(logs(P[1:]), logs(np.eye(4)[2:])), 1.0, rtol=1e-14)


def test_entropy():
    expected = [-(P[0] * np.log(P[0])).sum(), np.log(2.0), 0.0]
    np.testing.assert_allclose(entropy(logs(P)), expected, rtol=1e-14)
    gradient = jax.jit(jax.grad(lambda law: jnp.sum(entropy(law))))(logs(P))
    np.testing.assert_allclose(gradient, -xlogy(P, P) - P, rtol=1e-14)


def test_expectation_ignores_impossible_points():
    values = np.array([1.0, 0.0, -0.5, 2.0])
    np.testing.assert_allclose(expectation(logs(P), np.tile(values, (3, 1))), P @ values)
    with_infinity = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, np.inf, -np.inf], [np.nan, 2.0] * 2])
    with_infinity[2, 3] = np.inf
    values, gradient = jax.jit(jax.vmap(jax.value_and_grad(expectation)))(logs(P), with_infinity)
    np.testing.assert_allclose(values, [3.0, 1.5, 2.0], rtol=1e-14)
    expected = [[0.1, 0.4, 0.9, 1.6], [0.5, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    np.testing.assert_allclose(gradient, expected, rtol=1e-14)


def test_log_mean_exp_is_the_log_of_the_mean():
    np.testing.assert_allclose(log_mean_exp(logs(Q)), np.log(Q.mean(axis=1)), rtol=1e-14)
    with np.errstate(divide="ignore"):
        expected = np.log(Q.mean(axis=0))  # the last point is impossible under all three
    np.testing.assert_allclose(log_mean_exp(logs(Q), axis=0), expected, rtol=1e-14)
    assert log_mean_exp(np.zeros(3, jnp.bfloat16)).dtype == jnp.float32
