"""The inclusive binary at a tiny size, on shares that need no data folder."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from experiments.common import sources
from experiments.inclusive import classical, populations, references, run
from experiments.inclusive.arms import ARMS
from experiments.inclusive.config import Config
from experiments.inclusive.plackett_luce import fit_plackett_luce
from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

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


def test_kl_by_group_is_the_mean_over_its_prompts(config):
    population = populations.load(config)._replace(groups=("drinkers", "owners"))
    even = np.where(population.truth > 0, 1 / (population.truth > 0).sum(-1, keepdims=True), 0.0)
    found = references.kl_by_group(population, even)
    tea = 0.3 * np.log(0.6) + 0.7 * np.log(1.4)
    best = 0.5 * np.log(1.5) + 0.4 * np.log(1.2) + 0.1 * np.log(0.3)
    np.testing.assert_allclose(found["drinkers"], tea, rtol=1e-9)
    np.testing.assert_allclose(found["owners"], best, rtol=1e-9)
    together = population._replace(groups=("all", "all"))
    np.testing.assert_allclose(references.kl_by_group(together, even)["all"], (tea + best) / 2)
    assert references.kl_by_group(populations.load(config), even) == {}


def rankings_of(orders, num_seeds=2):
    """Returns people who each ranked three films; all of them both answer and judge."""
    ranks = 1 + np.argsort(orders, axis=1)
    wins = (ranks[:, :, None] < ranks[:, None, :]).sum(axis=0).astype(float)
    first = np.bincount(np.asarray(orders)[:, 0], minlength=3) / len(orders)
    repeat = lambda array: np.repeat(np.asarray(array)[None, None], num_seeds, axis=0)
    return populations.Population(
        ("best film",),
        (("one", "two", "three"),),
        np.ones(1),
        ranks[None],
        np.ones((num_seeds, len(orders))),
        repeat(first),
        repeat(first),
        repeat(wins),
        repeat(wins),
        np.ones(1),
        np.zeros(1, int),
    )


def test_fits_to_rankings_are_the_classical_ones():
    orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2], [2, 1, 0]]
    population = rankings_of(orders)
    points = references.points(population, population.truth, (0.5,))
    ranked = softmax(fit_plackett_luce(np.array(orders)))
    paired = softmax(classical.fit_bradley_terry(population.own_wins[0, 0], ridge=1.0))
    for name, law in [
        ("Plackett-Luce, all rankings", ranked),
        ("Bradley-Terry, all pairs", paired),
    ]:
        np.testing.assert_allclose(points[name]["prediction"][1, 0], law, rtol=1e-6)
    tied = population._replace(answers=np.minimum(population.answers, 2))
    assert "Plackett-Luce, all rankings" not in references.points(tied, tied.truth, (0.5,))


def test_resampling_is_announced():
    population = rankings_of([[0, 1, 2]] * 7)
    assert run._resampling(population, 7) == "people of a half who answered a prompt: 7 to 7"
    assert "at 1 of 1 prompts more answers are asked for" in run._resampling(population, 8)


def test_a_run_is_not_resumed_with_other_data(config):
    folder = f"{config.run_dir}/{config.dataset}"
    digest = sources.digest(populations.load(config))
    with run_folder.open_run_folder(folder, config, data_sha256=digest):
        pass
    assert sources.digest(populations.load(config)) == digest
    file = Path(config.shares_file)
    file.write_text(file.read_text().replace("0.3, 0.7", "0.4, 0.6"))
    with pytest.raises(UsageError, match=rf"data_sha256: found '{digest}', wanted"):
        run.experiment(config)


def test_all_arms_by_one_word(config):
    assert run.check(dataclasses.replace(config, arms=("all",))) == tuple(ARMS)


def test_bad_flags(config):
    with pytest.raises(UsageError, match=r"--width must be a multiple of 2 heads, found 3"):
        run.experiment(dataclasses.replace(config, width=3))
    with pytest.raises(UsageError, match=r"--prior_answers must be at least 0, found nan"):
        run.experiment(dataclasses.replace(config, prior_answers=float("nan")))
    with pytest.raises(UsageError, match=r"--seeds_at_once must be at least 1, found 0"):
        run.experiment(dataclasses.replace(config, seeds_at_once=0))
    with pytest.raises(UsageError, match=r"unknown arm 'lucky'; the known ones are: random_map"):
        run.experiment(dataclasses.replace(config, arms=("lucky",)))
    with pytest.raises(UsageError, match=r"--arms must name at least one arm, or all"):
        run.experiment(dataclasses.replace(config, arms=()))
    with pytest.raises(UsageError, match=r"--dataset=shares needs --shares_file"):
        run.experiment(dataclasses.replace(config, shares_file=""))
    with pytest.raises(UsageError, match=r"not a folder|does not exist|no such"):
        run.experiment(dataclasses.replace(config, dataset="starwars", data_dir="/nowhere"))
