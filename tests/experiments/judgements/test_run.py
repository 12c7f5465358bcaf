"""The comparison of methods on made-up judgements, with a tiny model."""

import csv
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.judgements import run
from experiments.judgements.config import METHODS, Config, check, run_config
from shatter.cli.common.binary import UsageError
from tests.experiments.judgements.files import json_lines

pytestmark = pytest.mark.slow  # whole runs of an experiment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "--methods must name at least one of ilhf_mean, .* found none"),
        ({"beta": float("nan")}, "--beta must be positive, found nan"),
        ({"num_train_epochs": -1.0}, "--num_train_epochs must be positive, found -1.0"),
        ({"max_length": 0}, "--max_length must be at least 3, found 0"),
        ({"first_seed": -1}, "--first_seed must be at least 0, found -1"),
        ({"first_seed": 2**31 - 2, "num_seeds": 3}, "--num_seeds must be at most 2, found 3"),
    ],
)
def test_comparisons_of_methods_check_the_flags_of_their_runs(changes, message):
    with pytest.raises(UsageError, match=message):
        check(dataclasses.replace(Config(), **changes))
    check(Config())


@pytest.fixture
def config(
    make_model: Callable[[Path, int], None], publish: Callable[[str, str], Path], tmp_path: Path
) -> Config:
    """Returns a comparison on texts in the letters that the tiny model knows."""
    texts = ["".join(text) for text in itertools.permutations("abcd", 3)][:20]
    publish("ukp_humour_items", json_lines([{"id": n, "text": t} for n, t in enumerate(texts)]))
    pairs = [f"{a},{b},{a % 4},{1 + b}" for a in range(20) for b in range(a)]
    folder = publish("ukp_humour_pairs", "a,b,votes_a,votes_b\n" + "\n".join(pairs) + "\n")
    make_model(tmp_path / "tiny", 1)
    return Config(
        run_dir=str(tmp_path / "runs"),
        model_name_or_path=str(tmp_path / "tiny"),
        data_dir=str(folder),
        methods=("reward_model",),
        num_seeds=2,
        num_train_epochs=0.01,
        max_length=32,
    )


def test_methods_and_baselines_are_scored_on_the_same_division(
    config: Config, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    run.experiment(config)
    folder = Path(config.run_dir) / "ukp_humour"
    summary = json.loads((folder / "summary.json").read_text())
    names = {"reward_model", "pretrained, reward_model", "Bradley-Terry", "n-grams", "length"}
    assert summary.keys() == names
    for method in names:
        assert {"eval_known/log_loss", "eval_new/accuracy"} <= summary[method].keys()
    # An untrained reward head is a coin.
    assert summary["pretrained, reward_model"]["eval_new/log_loss"]["mean"] == pytest.approx(
        np.log(2)
    )
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert (folder / "compare.png").stat().st_size > 10_000
    assert "Simpson et al., ACL 2019" in capsys.readouterr().out
    # Complete runs and the baselines' scores are only read.
    monkeypatch.setattr(run.run.train, "train", None)
    monkeypatch.setattr(run.baselines, "baseline_scores", None)
    run.experiment(config)
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_the_methods_differ_in_their_own_flags_alone():
    for method, own in METHODS.items():
        settings = dataclasses.asdict(run_config(Config(), method, 3))
        others = dataclasses.asdict(run_config(Config(), "dpo", 3))
        differing = {name for name in settings if settings[name] != others[name]}
        assert differing <= {*own, *METHODS["dpo"], "output_dir"}
        assert settings["seed"] == 3
