"""The losses of two runs, paired by seed."""

import json
from pathlib import Path

import pytest

from experiments.label_loop import compare
from experiments.label_loop.coverage import FILE
from shatter.cli.common.binary import UsageError


def write_run(folder: Path, losses: dict[int, list[float]], labels=(10, 20)) -> str:
    for seed, row in losses.items():
        (folder / f"seed{seed}").mkdir(parents=True)
        rounds = [
            {"labels": n, "pool_loss": loss, "estimates": {}}
            for n, loss in zip(labels, row, strict=True)
        ]
        (folder / f"seed{seed}" / FILE).write_text(json.dumps(rounds))
    return str(folder)


def test_differences_are_paired_by_seed(tmp_path, capsys):
    """Of the seeds and the numbers of labels that both runs have."""
    first = write_run(tmp_path / "a", {3: [0.5, 0.4], 4: [0.9, 0.8]})
    second = write_run(tmp_path / "b", {3: [0.6, 0.5], 4: [1.0, 0.9], 5: [9.0, 9.0]})
    compare.experiment(compare.Config(first, second))
    said = capsys.readouterr().out
    assert "2 seeds" in said
    rows = [[cell.strip() for cell in line.split("│")] for line in said.splitlines() if "│" in line]
    found = {row[1]: row[2:6] for row in rows}
    assert found["10"] == ["0.7000", "0.8000", "-0.1000", "[-0.1000, -0.1000]"]
    assert found["20"][:2] == ["0.6000", "0.7000"] and found["mean"][0] == "0.6500"


def test_runs_that_cannot_be_compared(tmp_path):
    first = write_run(tmp_path / "a", {3: [0.5, 0.4]})
    other = write_run(tmp_path / "b", {4: [0.5, 0.4]})
    with pytest.raises(UsageError, match="expected seeds of --first, seed3, found seed4"):
        compare.experiment(compare.Config(first, other))
    with pytest.raises(UsageError, match=r"expected seed0/rounds.json and so on, found none: run"):
        compare.experiment(compare.Config(first, str(tmp_path)))
    with pytest.raises(UsageError, match="--second is required"):
        compare.experiment(compare.Config(first))
