"""Moment and pointwise constraints against enumeration, and moments that cannot be fitted."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents
from shatter.inference import check_weights, fit_moments, moment_target, pointwise_target
from shatter.models import tabular
from shatter.numerics import LOG_ZERO

V, L, EOS = 3, 3, 0
LM = tabular(vocab_size=V, max_length=L)
RNG = np.random.default_rng(0)
RESPONSES, MASK = (
    np.asarray(x)[:, 1:] for x in documents.enumerate_documents(vocab_size=V, max_length=L, eos=EOS)
)
LOG_P0 = np.log(RNG.dirichlet(np.ones(len(RESPONSES))))
FEATURES = np.stack(
    [
        MASK.sum(axis=1),  # length
        ((RESPONSES == 2) & MASK).sum(axis=1) * 100.0,  # of another scale
        RESPONSES[:, 0] == 1,
    ],
    axis=1,
).astype(float)


def law(lam, features=FEATURES, log_p0=LOG_P0):
    scores = log_p0 + features @ lam
    return np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()


@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
def test_moments_over_an_enumerated_space(size: float):
    """E_p phi = mu to 1e-9 of each feature's range, and lam is the one that gave mu."""
    for seed in range(5):
        wanted = size * np.random.default_rng(seed).standard_normal(3) / [1.0, 100.0, 1.0]
        moments = law(wanted) @ FEATURES
        lam = fit_moments(FEATURES, moments, log_weights=LOG_P0, min_share=0.0)
        assert lam.dtype == np.float64
        np.testing.assert_allclose((law(lam) @ FEATURES - moments) / [2, 300, 1], 0.0, atol=1e-9)
        np.testing.assert_allclose(law(lam), law(wanted), atol=1e-6)
        if size < 4.0:
            np.testing.assert_allclose(lam * [1, 100, 1], wanted * [1, 100, 1], atol=1e-6)


def test_fitted_law_is_the_nearest_to_the_reference():
    """For laws p' with the same moments KL(p' || p0) = KL(p' || p) + KL(p || p0)."""
    moments = np.array([2.2, 60.0, 0.4])
    p = law(fit_moments(FEATURES, moments, log_weights=LOG_P0, min_share=0.0))
    null = np.linalg.svd(np.vstack([FEATURES.T, np.ones(len(p))]))[2][4:]
    for direction in null:
        other = p + 0.5 * direction * (p / np.abs(direction)).min()
        np.testing.assert_allclose(other @ FEATURES, moments, rtol=1e-9)
        kl = lambda a, b: (a * np.log(a / b)).sum()
        reference = np.exp(LOG_P0)
        assert kl(other, reference) == pytest.approx(kl(other, p) + kl(p, reference), rel=1e-7)
        assert kl(other, p) > 1e-6


def test_moments_from_samples():
    """20,000 samples of p0, or of another law with its weights: lam within 4 standard errors of
    the exact one (by the delta method, Cov_p^-1 times the spread of the weighted moments).
    """
    moments, n = np.array([2.0, 80.0, 0.35]), 20_000
    exact = fit_moments(FEATURES, moments, log_weights=LOG_P0, min_share=0.0)
    p, p0, rng = law(exact), np.exp(LOG_P0), np.random.default_rng(1)
    centred = FEATURES - moments
    inverse = np.linalg.inv((p[:, None] * centred).T @ centred)
    proposal = rng.dirichlet(np.ones(len(p)) * 5)
    for q, log_weights in ((p0, None), (proposal, LOG_P0 - np.log(proposal))):
        x = rng.choice(len(p), size=n, p=q)
        weights = None if log_weights is None else log_weights[x]
        lam = fit_moments(FEATURES[x], moments, log_weights=weights)
        # the influence of one sample on lam: Cov_p^-1 (p / q) (phi - mu)
        spread = inverse @ ((p**2 / q)[:, None] * centred).T @ centred @ inverse
        error = np.sqrt(np.diag(spread) / n)
        assert (np.abs(lam - exact) <= 4 * error).all()
        assert np.abs((lam - exact) / error).max() > 0.1
        assert (error < 0.2 * np.array([1.0, 0.01, 1.0])).all()


def test_redundant_and_constant_features():
    """Copies, sums and constants change lam, not the law."""
    moments = np.array([2.2, 60.0, 0.4])
    extra = np.column_stack([FEATURES, FEATURES[:, :1], FEATURES @ [1, 1, 1], np.ones(len(MASK))])
    wanted = np.concatenate([moments, moments[:1], [moments.sum()], [1.0]])
    single = fit_moments(FEATURES, moments, log_weights=LOG_P0, min_share=0.0)
    lam = fit_moments(extra, wanted, log_weights=LOG_P0, min_share=0.0)
    np.testing.assert_allclose(law(lam, extra), law(single), atol=1e-9)
    assert np.abs(lam).max() < 1e3


def test_moments_near_an_extreme_and_rare_features():
    """For P(b) from 1e-4 to 1 - 1e-7, lam is the difference of the log-odds."""
    features = np.array([[1.0], [0.0]])
    log_p0 = np.log([1e-4, 1 - 1e-4])
    for wanted in (1e-7, 0.5, 1 - 1e-7):
        lam = fit_moments(features, [wanted], log_weights=log_p0, min_share=0.0, tolerance=1e-13)
        odds = np.log(wanted / (1 - wanted)) - np.log(1e-4 / (1 - 1e-4))
        assert lam[0] == pytest.approx(odds, abs=1e-4)


def test_pointwise_constraint_is_the_limit_of_a_moment(float64: None):
    satisfied = ~(RESPONSES == 2).any(axis=1)
    target = jax.jit(pointwise_target)(LOG_P0, satisfied)
    p = np.exp(target) / np.exp(target).sum()
    np.testing.assert_allclose(p, np.exp(LOG_P0) * satisfied / np.exp(LOG_P0)[satisfied].sum())
    assert (np.asarray(target)[~satisfied] == LOG_ZERO).all()
    b, gaps = satisfied[:, None].astype(float), []
    for gap in (1e-2, 1e-4, 1e-6):
        lam = fit_moments(b, [1 - gap], log_weights=LOG_P0, min_share=0.0)
        gaps.append(np.abs(law(lam, b) - p).sum() / 2)
        assert gaps[-1] == pytest.approx(gap, rel=1e-3)  # the mass on what breaks it
    with pytest.raises(ValueError, match="pointwise_target"):
        fit_moments(b, [1.0], log_weights=LOG_P0)


def test_documents_without_mass_do_not_count():
    """A feature of these documents alone cannot be fitted; others are fitted as without them."""
    features = np.vstack([FEATURES, [[9.0, 900.0, 9.0]]])
    moments = np.array([2.2, 60.0, 0.4])
    expected = fit_moments(FEATURES, moments, log_weights=LOG_P0, min_share=0.0)
    for zero in (-np.inf, LOG_ZERO):
        log_p0 = np.append(LOG_P0, zero)
        lam = fit_moments(features, moments, log_weights=log_p0, min_share=0.0)
        np.testing.assert_allclose(lam, expected, rtol=1e-12)
        with pytest.raises(ValueError, match=r"feature 0 .* moment 5: .*\(1, 3\)"):
            fit_moments(features, [5.0, 60.0, 0.4], log_weights=log_p0)


def test_moments_out_of_reach_are_named():
    with pytest.raises(ValueError, match=r"feature 1 .* moment 301: .*open interval \(0, 300\)"):
        fit_moments(FEATURES, [2.0, 301.0, 0.5], log_weights=LOG_P0)
    with pytest.raises(ValueError, match=r"feature 2 .* moment 0: .*open interval \(0, 1\)"):
        fit_moments(FEATURES, [2.0, 30.0, 0.0], log_weights=LOG_P0)
    with pytest.raises(ValueError, match=r"feature 0 .* moment 2: .*\(1, 1\)"):
        fit_moments(np.ones((5, 1)), [2.0])
    # Each alone is reachable: 2.9 twos need three places, and length 1.5 leaves them not.
    with pytest.raises(ValueError, match=r"together.* expected .* for feature [01], found"):
        fit_moments(FEATURES, [1.5, 290.0, 0.5], log_weights=LOG_P0)
    # The same feature twice, with two wishes: halfway between is reached.
    with pytest.raises(ValueError, match=r"expected 2(\.2)? for feature [01], found 2\.1\d* at"):
        fit_moments(FEATURES[:, [0, 0]], [2.0, 2.2], log_weights=LOG_P0)


def test_bad_inputs_are_refused():
    moments = np.array([2.0, 60.0, 0.4])
    for wrong in ((FEATURES[:, 0], moments), (FEATURES, moments[:2]), (FEATURES[:0], moments)):
        with pytest.raises(ValueError, match=r"expected features \[N, F\]"):
            fit_moments(*wrong)
    with pytest.raises(ValueError, match=r"expected log weights \[15\], found shape \(4,\)"):
        fit_moments(FEATURES, moments, log_weights=np.zeros(4))
    for wrong in ({"max_steps": 0}, {"tolerance": 0.0}):
        with pytest.raises(ValueError, match="max_steps >= 1 and tolerance > 0"):
            fit_moments(FEATURES, moments, **wrong)
    bad = FEATURES.copy()
    bad[4, 1], bad[6, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 features are NaN .* feature 1 of sample 4"):
        fit_moments(bad, moments)
    with pytest.raises(ValueError, match="moment of feature 2 is nan"):
        fit_moments(FEATURES, [2.0, 60.0, np.nan])
    with pytest.raises(ValueError, match="1 of 15 log weights under the reference are NaN"):
        fit_moments(FEATURES, moments, log_weights=np.append(LOG_P0[1:], np.nan))
    with pytest.raises(ValueError, match="no sample has mass under the reference"):
        fit_moments(FEATURES, moments, log_weights=np.full(15, -np.inf))


def test_few_effective_samples_are_warned_of():
    features = np.append(np.zeros(199), 1.0)[:, None]
    with pytest.warns(UserWarning, match="under the fitted target is .* of 200 samples"):
        lam = fit_moments(features, [0.9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(fit_moments(features, [0.9], min_share=0.0), lam)
        fit_moments(features, [0.01])
    assert check_weights(features @ lam, min_share=0.0) < 2


def test_moment_target(float64: None):
    lam = np.array([0.3, -0.02, 1.0])
    run = jax.jit(moment_target)
    expected = LOG_P0 + FEATURES @ lam
    np.testing.assert_allclose(run(LOG_P0, FEATURES, lam), expected, rtol=1e-13)
    tiled = run(np.tile(LOG_P0, (2, 4, 1)), np.tile(FEATURES, (2, 4, 1, 1)), lam)
    np.testing.assert_allclose(tiled, np.tile(expected, (2, 4, 1)), rtol=1e-13)
    only = run(LOG_P0, FEATURES[:, 2:] > 0, lam[2:])
    np.testing.assert_allclose(only, LOG_P0 + FEATURES[:, 2], rtol=1e-13)


FLOATS, LAM = jax.ShapeDtypeStruct((4,), np.float32), jax.ShapeDtypeStruct((2,), np.float32)


def test_wrong_shapes_and_types_raise_while_tracing():
    features, satisfied = jax.ShapeDtypeStruct((4, 2), np.float32), jax.ShapeDtypeStruct((4,), bool)
    integers = jax.ShapeDtypeStruct((4,), np.int32)
    assert jax.eval_shape(moment_target, FLOATS, features, LAM).shape == (4,)
    for wrong in ((integers, features, LAM), (FLOATS, FLOATS, LAM), (FLOATS, features, FLOATS)):
        with pytest.raises(AssertionError):
            jax.eval_shape(moment_target, *wrong)
    assert jax.eval_shape(pointwise_target, FLOATS, satisfied).shape == (4,)
    for wrong in (
        (integers, satisfied),
        (FLOATS, FLOATS),
        (FLOATS, jax.typeof(jnp.zeros(3, bool))),
    ):
        with pytest.raises(AssertionError):
            jax.eval_shape(pointwise_target, *wrong)
