"""The figure of a run can be drawn, whatever the names of its files."""

from pathlib import Path

import pytest

from shatter.cli.finetune import plot
from shatter.cli.finetune.config import Config


@pytest.mark.parametrize("name", ["cost in $_$", "$\\frac$", "[b]a_{"])
def test_names_of_files_are_no_formulas(tmp_path: Path, name: str):
    history = [
        {"step": 0, "epoch": 0.0, f"eval_{name}/log_loss": 0.7, f"eval_{name}/accuracy": 0.5},
        {"step": 1, "epoch": 1.0, "loss": 0.6, "learning_rate": 0.1, "grad_norm": 1.0},
    ]
    plot.draw(Config(dataset_name=f"{name}.jsonl"), history, tmp_path / "finetune.png")
    assert (tmp_path / "finetune.png").stat().st_size > 10_000
