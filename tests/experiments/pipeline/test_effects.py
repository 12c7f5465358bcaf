"""Effects of a made-up factorial are those that it was made of."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.pipeline.effects import MEASURES, effects, experiment, read_cells
from experiments.pipeline.effects import Config as EffectsConfig
from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError

OF_NUDGE = {"0.0": 0.0, "0.1": 0.01}
OF_DECAY = {"1.0": 0.0, "0.0": -0.2}
OF_PAIR = {"online": 0.0, "information_directed, random": 0.03}


def write_figure(folder: Path, decay: str, *, nudges=tuple(OF_NUDGE)) -> str:
    """Writes the results of a figure: a number for each level, for the seed and for the round."""
    folder.mkdir()
    rows = []
    for nudge in nudges:
        for name in OF_PAIR:
            level = OF_NUDGE[nudge] + OF_DECAY[decay] + OF_PAIR[name]
            metrics = {
                measure: level * (1 + k) + np.array([[0.0, 0.1, 0.3], [0.5, 0.6, 0.8]])
                for k, measure in enumerate(MEASURES)
            }
            arm = name.partition(",")[0]
            rows += run_folder.metric_rows(
                f"nudge={nudge}", "pipeline", arm, np.array([0, 8, 16]), metrics
            )
    run_folder.write_csv(folder / "metrics.csv", rows)
    config = {"nudge": 0.1, "anchor_decay": float(decay), "selection": "random"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_effects_are_averages_over_the_other_parts(tmp_path: Path, capsys):
    folders = tuple(write_figure(tmp_path / decay, decay) for decay in OF_DECAY)
    found = dict(effects(read_cells(folders)))
    assert list(found) == [
        "nudge: 0.1 less 0.0",
        "anchor_decay: 0.0 less 1.0",
        "algorithm: information_directed, random less online",
    ]
    for columns, effect in zip(found.values(), (0.01, -0.2, 0.03), strict=True):
        for name, values in columns.items():
            times = {"samples": 2, "KL": 3, "entropy": 4}.get(name.split()[0].strip(","), 1)
            np.testing.assert_allclose(values, [effect * times] * 2, atol=1e-5)
    experiment(EffectsConfig(folders))
    assert "paired by seed" in capsys.readouterr().out


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"expected a finished figure with metrics\.csv"):
        read_cells((str(tmp_path),))
    folders = (
        write_figure(tmp_path / "1", "1.0"),
        write_figure(tmp_path / "0", "0.0", nudges=("0.1",)),
    )
    with pytest.raises(UsageError, match=r"found none of nudge=0.0, anchor_decay=0.0, algorithm="):
        read_cells(folders)


def test_algorithms_are_chosen_and_a_run_of_online_is_read(tmp_path: Path):
    folder = write_figure(tmp_path / "1", "1.0")
    config = {"nudge": 0.1, "anchor_decay": 1.0}  # experiments.online has no --selection
    (tmp_path / "1" / "config.json").write_text(json.dumps(config))
    found = dict(effects(read_cells((folder,))))
    assert list(found) == ["nudge: 0.1 less 0.0", "algorithm: information_directed less online"]
    alone = dict(effects(read_cells((folder,), ("online",))))
    assert list(alone) == ["nudge: 0.1 less 0.0"]
    with pytest.raises(UsageError, match=r"expected some that the folders have, found lucky"):
        read_cells((folder,), ("online", "lucky"))
