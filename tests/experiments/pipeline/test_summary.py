"""What the pipeline experiment says about made-up curves."""

import numpy as np
import pytest

from experiments.common.curves import Curve, win_rate_at
from experiments.pipeline.config import Config, Setting
from experiments.pipeline.summary import COLLAPSED, MEASURES, summarise

SETTING = Setting("x", Config(num_rounds=8, period=2), ())
LABELS = np.arange(9) * 10


def curves(wins, **others):
    """Two seeds; every measure is 1 but the win rates, which are given from 0 to 8 rounds."""
    metrics = {measure: np.ones((2, 9)) for measure in MEASURES}
    return {**metrics, "win_greedy": np.stack([wins, wins + 0.1]), **others}


@pytest.fixture(scope="module")
def rows():
    slow = np.array([0.5, 0.5, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7, 0.75])
    fast = np.array([0.5, 0.9, 0.75, 0.8, 0.85, 0.8, 0.8, 0.8, 0.8])
    ends = (1.1 * COLLAPSED, 0.9 * COLLAPSED)  # one of the two seeds is below it
    entropy = np.stack([np.linspace(1, end, 9) for end in ends])
    other = Setting("y", SETTING.config, ())
    results = {
        (SETTING, "offline"): curves(slow),
        (SETTING, "online"): curves(fast, entropy=entropy),
        (other, "online"): curves(fast - 0.1),
        (other, "dpo_online"): curves(fast),
    }
    return {(s.name, n): summarise(s, n, results, LABELS) for s, n in results}


@pytest.mark.slow
def test_differences_are_paired_and_read_at_the_ends_of_periods(rows):
    row = rows["x", "online"]
    assert row["budget"] == 80
    for part, gain in (("end", 0.05), ("after_20", 0.15), ("after_40", 0.15), ("after_80", 0.05)):
        found = row[f"{part}_less_reference"]["win_greedy"]
        assert found == pytest.approx({"mean": gain, "low": gain, "high": gain})
    assert row["area_less_reference"]["win_greedy"]["mean"] == pytest.approx(0.1125)
    assert rows["x", "offline"]["area_less_reference"]["win_greedy"]["mean"] == 0


@pytest.mark.slow
def test_labels_to_where_the_reference_ends(rows):
    labels = rows["x", "online"]["labels_win_greedy"]
    assert labels["mean"]["mean"] == labels["median"] == 20  # .9 after 10 is within a period
    assert labels["never"] == 0
    assert labels["saving"]["mean"] == pytest.approx(4)
    late = rows["y", "online"]["labels_win_greedy"]  # the reference is the first setting's
    assert late["never"] == 1
    assert late["mean"]["mean"] == 80
    assert "labels_win_greedy" not in rows["y", "dpo_online"]


def test_a_rise_and_fall_and_a_collapse_are_seen(rows):
    assert rows["x", "online"]["fall"]["mean"] == pytest.approx(0.05)
    assert rows["x", "online"]["fall"]["period"] == 2
    assert rows["x", "offline"]["fall"]["mean"] == 0
    assert rows["x", "online"]["collapsed"] == 0.5
    assert rows["x", "offline"]["collapsed"] == 0


@pytest.mark.slow
def test_an_extrapolation_is_in_budgets_of_the_reference():
    curve = Curve(0.7 * np.log(5.0), 0.7)
    exact = np.append(0.5, win_rate_at(curve, LABELS[1:]))
    results = {}
    for name, times in (("offline", 1.0), ("online", 3.0), ("periodic", 0.5)):
        wins = np.append(exact[:-1], win_rate_at(curve, times * LABELS[-1]))
        results[SETTING, name] = {**curves(wins), "win_greedy": np.stack([wins, wins])}
    for name, times in (("offline", 1.0), ("online", 3.0), ("periodic", 0.5)):
        found = summarise(SETTING, name, results, LABELS)["extrapolated"]
        assert found == pytest.approx({"mean": times, "low": times, "high": times})


def test_nothing_is_saved_where_the_reference_ends_no_higher_than_it_began():
    falling = np.array([0.7, 0.7, 0.65, 0.65, 0.6, 0.6, 0.6, 0.6, 0.6])
    results = {(SETTING, "offline"): curves(falling), (SETTING, "online"): curves(falling + 0.1)}
    results[SETTING, "online"]["win_greedy"][:, 0] = results[SETTING, "offline"]["win_greedy"][:, 0]
    saving = summarise(SETTING, "online", results, LABELS)["labels_win_greedy"]["saving"]
    assert saving == {"mean": 1.0, "low": 1.0, "high": 1.0}
