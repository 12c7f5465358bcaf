"""The inclusive binary at a tiny size, on shares that need no data folder."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.common.binary import UsageError
from experiments.inclusive import populations, references, run
from experiments.inclusive.config import Config

LINES = [
    {"prompt": "tea or coffee", "completions": ["tea", "coffee"], "shares": [0.3, 0.7], "n": 100},
    {"prompt": "best", "completions": ["cat", "dog", "bird"], "shares": [0.5, 0.4, 0.1], "n": 50},
]


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "shares.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return Config(
        dataset="shares",
        shares_file=str(file),
        run_dir=str(tmp_path / "run"),
        arms=("random_map",),
        num_seeds=2,
        num_members=1,
        width=4,
        num_steps=1,
        rounds_small=2,
        rounds_large=0,
        pretraining_steps=2,
    )


def test_a_population_of_shares(config):
    population = populations.load(config)
    assert population.prompts == ("tea or coffee", "best")
    np.testing.assert_allclose(population.truth[0], [[0.3, 0.7, 0.0], [0.5, 0.4, 0.1]])
    np.testing.assert_allclose(population.own_wins[0, 0, 1, 0], 0.7)
    np.testing.assert_allclose(population.wins[1, 1, 0, 1], 0.5 / 0.9)
    assert population.wins[0, 0, 0, 2] == 0.0  # there is no third option


def test_references_of_known_shares(config):
    population = populations.load(config)
    pretrained = np.where(population.truth > 0, 0.5, 0.0)
    points = references.points(population, pretrained, (0.5,))
    np.testing.assert_allclose(points["people"]["kl"], 0.0, atol=1e-12)
    np.testing.assert_allclose(points["people"]["best_known"], 1.0)
    squared = np.array([0.09, 0.49]) / 0.58
    np.testing.assert_allclose(
        points["agglomerative, beta 0.5"]["prediction"][0, 0, :2], squared, rtol=1e-6
    )
    fits = references.curves(population, (10, 4000), seed=0)
    assert (fits["Bradley-Terry, ridge 1"]["kl"][:, 1] < 0.01).all()


@pytest.mark.slow
def test_a_run_writes_its_folder(config, tmp_path):
    run.experiment(config)
    folder = tmp_path / "run" / "shares"
    names = {row["name"] for row in json.loads((folder / "summary.json").read_text())}
    assert {"random_map", "pretrained", "people", "majority", "Bradley-Terry, ridge 0"} <= names
    assert (folder / "shares.png").stat().st_size > 10_000


def test_bad_flags(config):
    with pytest.raises(UsageError, match=r"unknown arm 'lucky'; the known ones are: random_map"):
        run.experiment(dataclasses.replace(config, arms=("lucky",)))
    with pytest.raises(UsageError, match=r"--dataset=shares needs --shares_file"):
        run.experiment(dataclasses.replace(config, shares_file=""))
    with pytest.raises(UsageError, match=r"not a folder|does not exist|no such"):
        run.experiment(dataclasses.replace(config, dataset="starwars", data_dir="/nowhere"))
