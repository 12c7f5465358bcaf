import numpy as np
import pytest

from experiments.common.intervals import curve_saving, format_interval, mean_interval


def test_the_interval_holds_the_mean_and_narrows():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=10), rng.normal(size=1000)
    for values in (few, many):
        found = mean_interval(values)
        assert found["mean"] == pytest.approx(values.mean())
        assert values.min() <= found["low"] < found["mean"] < found["high"] <= values.max()
    # 95% of a normal mean is 1.96 / sqrt(n) either way.
    found = mean_interval(many)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.1)


def test_the_saving_is_read_off_the_mean_curves():
    queries = np.arange(5) * 10
    slow = np.array([[4.0, 3.5, 3.0, 2.5, 2.0], [6.0, 5.5, 5.0, 4.5, 4.0]])
    quick = np.array([[4.0, 1.0, 1.0, 1.0, 1.0], [6.0, 5.0, 5.0, 5.0, 5.0]])
    found = curve_saving(quick, slow, queries)  # means 5, 3, 3, ...; the level is 3
    assert found["mean"] == 4.0
    assert (found["low"], found["high"]) == (1.0, 4.0)  # of draws of one seed alone
    assert curve_saving(slow, slow, queries)["mean"] == 1.0
    assert curve_saving(slow + 1.0, slow, queries)["mean"] == 1.0  # it never arrives
    near = slow + np.array([0.0, 0.0, 0.0, 0.0, 1e-6])
    assert curve_saving(slow, slow - 1e-6, queries)["mean"] == 1.0
    assert curve_saving(near[:, [0, 4, 4, 4, 4]], slow, queries, same=1e-4)["mean"] == 4.0


def test_nothing_is_saved_where_the_reference_does_not_end_below_the_start():
    queries = np.arange(3) * 10
    rising, falling = np.array([[1.0, 1.5, 2.0]] * 2), np.array([[1.0, 0.5, 0.4]] * 2)
    assert curve_saving(falling, rising, queries) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert curve_saving(falling, np.ones((2, 3)), queries)["mean"] == 1.0


def test_text():
    value = {"mean": 0.01234, "low": 0.01, "high": 0.02}
    assert format_interval(value) == "0.0123 [0.0100, 0.0200]"
    assert format_interval(value, interval=False) == "0.0123"
    assert format_interval({"mean": -1.5, "low": -2, "high": -1}) == "-1.500 [-2.000, -1.000]"
    assert format_interval(None) == ""
