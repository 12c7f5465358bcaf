import numpy as np
import pytest

from experiments.common.intervals import format_interval, mean_interval


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


def test_text():
    value = {"mean": 0.01234, "low": 0.01, "high": 0.02}
    assert format_interval(value) == "0.0123 [0.0100, 0.0200]"
    assert format_interval(value, interval=False) == "0.0123"
    assert format_interval({"mean": -1.5, "low": -2, "high": -1}) == "-1.500 [-2.000, -1.000]"
    assert format_interval(None) == ""
