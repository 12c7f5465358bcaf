import numpy as np
import pytest

from shatter.evaluation import bootstrap_interval, queries_to_level

QUERIES = [8, 16, 24, 32]


def test_the_first_round_at_or_below_the_level():
    curves = [
        [0.9, 0.5, 0.4, 0.3],  # reaches 0.5 to the dot
        [0.9, 0.4, 0.8, 0.4],  # rises again: the first time counts
        [0.1, 0.9, 0.9, 0.9],  # at once
        [0.9, 0.8, 0.7, 0.6],  # never
        [0.9, 0.8, 0.7, 0.5],  # in the last round: not censored
        [np.nan, np.nan, np.nan, np.nan],  # a run that broke never got there
    ]
    queries, censored = queries_to_level(curves, QUERIES, 0.5)
    np.testing.assert_array_equal(queries, [16, 16, 8, 32, 32, 32])
    np.testing.assert_array_equal(censored, [False, False, False, True, False, True])


def test_each_seed_has_its_own_level():
    curves = [[0.9, 0.5, 0.4, 0.3]] * 3
    queries, censored = queries_to_level(curves, QUERIES, [0.95, 0.4, 0.2])
    np.testing.assert_array_equal(queries, [8, 24, 32])
    np.testing.assert_array_equal(censored, [False, False, True])


def test_curves_fit_their_queries():
    for curves in (np.zeros((2, 3)), np.zeros(4)):
        with pytest.raises(ValueError, match=r"expected curves \[S, R\] and queries \[R\], found"):
            queries_to_level(curves, QUERIES, 0.5)


def test_the_interval_of_a_constant_is_a_point():
    assert bootstrap_interval(np.mean, np.full(7, 3.5), rng=np.random.default_rng(0)) == (3.5, 3.5)


def test_the_interval_of_a_share_is_binomial():
    # The mean of resamples of 20 zeros and 20 ones is Binomial(40, 1/2) / 40: its 2.5% quantile is
    # 14, its 97.5% quantile 26.
    sample = np.repeat([0.0, 1.0], 20)
    low, high = bootstrap_interval(
        np.mean, sample, num_resamples=20_000, rng=np.random.default_rng(0)
    )
    assert (low, high) == (14 / 40, 26 / 40)
    low, high = bootstrap_interval(
        np.mean, sample, num_resamples=20_000, confidence=0.5, rng=np.random.default_rng(0)
    )
    assert (low, high) == (18 / 40, 22 / 40)


def test_the_interval_covers_the_mean_of_a_normal():
    rng = np.random.default_rng(0)
    intervals = [
        bootstrap_interval(
            np.mean,
            rng.normal(size=40),
            num_resamples=200,
            rng=np.random.default_rng(i),
            confidence=0.9,
        )
        for i in range(300)
    ]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert abs(covered - 0.9) < 0.02 + 4.5 * np.sqrt(0.9 * 0.1 / 300) / 2  # a little short: 0.02
    width = np.mean([high - low for low, high in intervals])
    np.testing.assert_allclose(width, 2 * 1.645 / np.sqrt(40), rtol=0.08)


def test_samples_are_paired_by_seed():
    # One arm needs twice the other's queries in every seed, however much seeds differ.
    first = np.random.default_rng(0).lognormal(sigma=2.0, size=30)
    ratio = lambda a, b: np.median(a) / np.median(b)
    np.testing.assert_allclose(
        bootstrap_interval(ratio, 2 * first, first, rng=np.random.default_rng(0)),
        (2, 2),
        rtol=1e-12,
    )
    low, high = bootstrap_interval(ratio, 2 * first, first[::-1], rng=np.random.default_rng(0))
    assert low < 1.5 < 2.7 < high


def test_the_seed_of_the_draws():
    sample = np.random.default_rng(0).normal(size=20)
    assert bootstrap_interval(np.mean, sample, rng=np.random.default_rng(0)) == bootstrap_interval(
        np.mean, sample, rng=np.random.default_rng(0)
    )
    assert bootstrap_interval(np.mean, sample, rng=np.random.default_rng(0)) != bootstrap_interval(
        np.mean, sample, rng=np.random.default_rng(1)
    )


def test_samples_of_one_length():
    for samples in ([np.zeros(3), np.zeros(4)], [np.zeros(0)], [np.zeros((2, 2))]):
        with pytest.raises(ValueError, match=r"expected samples \[S\] of one length >= 1"):
            bootstrap_interval(np.mean, *samples, rng=np.random.default_rng(0))
