"""Importance weights against sums over a small space, and extreme weights."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from shatter.inference import (
    check_weights,
    effective_sample_size,
    importance_kl,
    log_evidence,
    resample,
    snis_expectation,
)
from shatter.numerics import LOG_ZERO

D, N, RUNS = 6, 400, 2_000
RNG = np.random.default_rng(0)
Q = RNG.dirichlet(np.ones(D) * 3)  # the proposal
PI = RNG.dirichlet(np.ones(D) * 3)
MASS = RNG.gamma(2.0, size=D) * np.array([1, 1, 0, 1, 1, 1])  # P; one point is forbidden
Z = MASS.sum()
P = MASS / Z
VALUES = RNG.standard_normal(D)
LOG_MASS = np.where(MASS > 0, np.log(np.where(MASS > 0, MASS, 1.0)), -np.inf)
KL = (P[P > 0] * np.log(P[P > 0] / PI[P > 0])).sum()


@jax.jit
def estimates(log_weights, values):
    return (
        log_evidence(log_weights),
        effective_sample_size(log_weights),
        snis_expectation(log_weights, values),
    )


def test_every_point_once_weighted_by_q_is_exact(float64: None):
    """All D points once are a sample of the uniform law, with the log weights log(P D)."""
    log_weights = LOG_MASS + np.log(D)
    evidence, size, mean = estimates(log_weights, VALUES)
    assert evidence == pytest.approx(np.log(Z), abs=1e-14)
    assert size == pytest.approx(1 / (P**2).sum(), rel=1e-13)
    assert mean == pytest.approx(P @ VALUES, abs=1e-14)
    uniform = np.full(D, -np.log(D))
    found = jax.jit(importance_kl)(LOG_MASS, np.log(PI), uniform)
    assert found == pytest.approx(KL, abs=1e-14)
    assert KL > 0.05
    log_pi = np.where(np.arange(D) == 0, -np.inf, np.log(PI))  # cannot give what p has
    found = jax.jit(importance_kl)(LOG_MASS, log_pi, uniform)
    assert found == pytest.approx(-LOG_ZERO * P[0], rel=1e-12)


def test_estimates_from_samples(float64: None):
    """2,000 runs of 400 samples: Z_hat has no bias, within 4 standard errors of its mean; the
    others a bias of order 1/400 of their variance, below 0.1 times the spread of one run.
    """

    @jax.jit
    def run(key, log_mass, log_q, log_pi, values):
        x = jax.random.categorical(key, log_q, shape=(RUNS, N))
        log_weights = log_mass[x] - log_q[x]
        mean = snis_expectation(log_weights, values[x])
        kl = importance_kl(log_mass[x], log_pi[x], log_q[x])
        return jnp.exp(log_evidence(log_weights)), mean, kl, effective_sample_size(log_weights)

    z, mean, kl, size = map(
        np.asarray, run(jax.random.key(1), LOG_MASS, np.log(Q), np.log(PI), VALUES)
    )
    assert abs(z.mean() - Z) < 4 * z.std() / RUNS**0.5
    assert z.std() > 0.01
    # N E_q[w]^2 / E_q[w^2], by the law of large numbers
    assert size.mean() / N == pytest.approx(1 / (P**2 / Q).sum(), rel=0.01)
    for found, exact in ((mean, P @ VALUES), (kl, KL)):
        assert abs(found.mean() - exact) < 0.1 * found.std()
        assert found.std() < 0.15  # consistent: the spread falls as 1 / sqrt(N)


@pytest.mark.parametrize("zero", [-np.inf, LOG_ZERO, 2 * LOG_ZERO, LOG_ZERO / 7])
def test_no_weight_above_zero(zero: float):
    """The results are numbers in float32, not NaN, and an error under checkify."""
    log_weights, values = np.full(5, zero, np.float32), np.full(5, np.nan, np.float32)
    evidence, size, mean = estimates(log_weights, values)
    assert evidence <= LOG_ZERO / 7 and np.isfinite(evidence)
    assert size == 0.0
    assert mean == 0.0
    kl = jax.jit(importance_kl)(log_weights, np.zeros(5, np.float32), np.zeros(5, np.float32))
    assert np.isfinite(kl) and kl > 1e28
    with pytest.raises(checkify.JaxRuntimeError, match="no sample has mass: all 5 weights"):
        jax.jit(checkify.checkify(snis_expectation))(log_weights, values)[0].throw()


def test_zero_weights_and_shifts_do_no_harm():
    """A NaN with weight zero and a shift of 1e4 in float32 keep values and gradients finite."""
    log_weights = np.array([0.0, -np.inf, 1.0, LOG_ZERO], np.float32)
    values = np.array([1.0, np.nan, 3.0, np.nan], np.float32)
    evidence, size, mean = estimates(log_weights, values)
    w = np.array([1.0, np.e]) / (1 + np.e)
    assert evidence == pytest.approx(np.log((1 + np.e) / 4), rel=1e-6)
    assert size == pytest.approx(1 / (w**2).sum(), rel=1e-6)
    assert mean == pytest.approx(w @ [1.0, 3.0], rel=1e-6)
    shifted = estimates(log_weights + np.float32(1e4), values)
    np.testing.assert_allclose(shifted, [evidence + 1e4, size, mean], rtol=1e-6)
    gradient = np.asarray(jax.grad(lambda *x: sum(estimates(*x)))(log_weights, values))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[[1, 3]], 0.0)


def test_effective_sample_size_of_equal_weights(float64: None):
    log_weights = np.full((2, 3, 7), -4.0)
    evidence, size, mean = estimates(log_weights, np.broadcast_to(np.arange(7), (2, 3, 7)))
    np.testing.assert_allclose(size, np.full((2, 3), 7.0), rtol=1e-14)
    np.testing.assert_allclose(evidence, np.full((2, 3), -4.0), rtol=1e-14)
    np.testing.assert_allclose(mean, np.full((2, 3), 3.0), rtol=1e-14)


def test_resampling_counts(float64: None):
    """Each of 20,000 draws counts floor or ceil of num_samples w; the mean within 4 errors of it;
    what has weight zero never appears.
    """
    weights = np.array([0.0, 0.35, 0.0, 0.05, 0.6, 0.0])
    log_weights = np.where(weights > 0, np.log(np.where(weights > 0, weights, 1.0)), -np.inf) + 3
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key, x: resample(key, x, num_samples=7), in_axes=(0, None)))
    indices = np.asarray(draw(keys, log_weights))
    assert (np.diff(indices) >= 0).all()
    counts = (indices[:, :, None] == np.arange(6)).sum(axis=1)
    expected = 7 * weights
    assert (counts >= np.floor(expected)).all() and (counts <= np.ceil(expected)).all()
    error = counts.std(axis=0) / len(keys) ** 0.5
    assert (np.abs(counts.mean(axis=0) - expected) <= 4 * error).all()
    assert counts.std(axis=0).max() > 0.4


def test_resampling_never_takes_what_has_no_weight():
    """With weights of zero at both ends, in float32, where a mark may be rounded up to the end."""
    log_weights = np.full(2_000, -np.inf, np.float32)
    log_weights[10:-10] = RNG.standard_normal(1_980)
    log_weights[500:700] = LOG_ZERO
    keys = jax.random.split(jax.random.key(1), 200)
    draw = jax.jit(jax.vmap(lambda key, x: resample(key, x, num_samples=4_000), in_axes=(0, None)))
    indices = np.asarray(draw(keys, log_weights))
    assert np.isin(indices, np.flatnonzero(log_weights > LOG_ZERO)).all()
    checked = jax.jit(checkify.checkify(lambda key, x: resample(key, x, num_samples=4)))
    checked(jax.random.key(2), log_weights)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="no sample has mass"):
        checked(jax.random.key(3), np.full_like(log_weights, LOG_ZERO))[0].throw()


@pytest.mark.parametrize("start", [0.0, 1 - 2.0**-24])
def test_marks_at_the_very_ends(monkeypatch: pytest.MonkeyPatch, start: float):
    """With the smallest and the largest uniform number; in float32 the last mark rounds up."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, dtype: jnp.asarray(start, dtype))
    log_weights = np.array([-np.inf, 0.0, LOG_ZERO, 0.0, -np.inf], np.float32)
    indices = resample(jax.random.key(0), jnp.asarray(log_weights), num_samples=4_000)
    counts = np.bincount(indices, minlength=5)
    np.testing.assert_array_equal(counts > 0, [False, True, False, True, False])
    assert counts.sum() == 4_000 and abs(counts[1] - 2_000) <= 1  # one by rounding


def test_checked_weights_give_their_size():
    log_weights = jnp.array([0.0, -jnp.inf, 1.0, LOG_ZERO])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size = check_weights(log_weights)
    assert size == pytest.approx(float(effective_sample_size(log_weights)), rel=1e-6)


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match=r"2 of 5 .*under p\* are NaN or \+inf.* index 1"):
        check_weights([0.0, np.inf, 1.0, np.nan, -np.inf], law_name="p*")
    for zero in (-np.inf, LOG_ZERO):
        with pytest.raises(ValueError, match=r"no sample has mass under the target.*all 4 samples"):
            check_weights(np.full(4, zero))
    for wrong in (np.zeros((2, 2)), np.zeros(0), 1.0):
        with pytest.raises(ValueError, match=r"expected log weights \[N\]"):
            check_weights(wrong)


def test_few_effective_samples_are_warned_of():
    log_weights = np.append(np.zeros(99), 10.0)
    weights = np.exp(log_weights) / np.exp(log_weights).sum()
    expected = f"under the tilt is {1 / (weights**2).sum():.3g} of 100 .*{weights.max():.3g}"
    with pytest.warns(UserWarning, match=expected):
        size = check_weights(log_weights, law_name="the tilt")
    assert size == pytest.approx(1 / (weights**2).sum(), rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_weights(log_weights, min_share=0.01)
        check_weights(log_weights, min_share=0.0)


FLOATS = jax.ShapeDtypeStruct((4,), np.float32)


@pytest.mark.parametrize(
    "wrong", [jax.ShapeDtypeStruct((3,), np.float32), jax.ShapeDtypeStruct((4,), np.int32)]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_wrong_shapes_and_types_raise_while_tracing(wrong, place: int):
    arguments = [FLOATS, FLOATS, FLOATS]
    arguments[place] = wrong
    with pytest.raises(AssertionError):
        jax.eval_shape(importance_kl, *arguments)


def test_wrong_arguments_raise():
    for function in (log_evidence, effective_sample_size):
        with pytest.raises(AssertionError):
            jax.eval_shape(function, jax.ShapeDtypeStruct((4,), np.int32))
        with pytest.raises(AssertionError, match="found a scalar"):
            jax.eval_shape(function, jax.ShapeDtypeStruct((), np.float32))
    with pytest.raises(AssertionError):
        jax.eval_shape(snis_expectation, FLOATS, jax.ShapeDtypeStruct((2, 4), np.float32))
    with pytest.raises(ValueError, match="num_samples >= 1, found 0"):
        resample(jax.random.key(0), jnp.zeros(3), num_samples=0)
    checked = jax.jit(checkify.checkify(log_evidence))
    for bad in (np.nan, np.inf):
        with pytest.raises(checkify.JaxRuntimeError, match=r"NaN or \+inf"):
            checked(np.array([0.0, bad], np.float32))[0].throw()
