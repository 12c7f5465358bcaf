"""The model as its own reward: the walk, and the laws of a temperature, against numpy."""

import csv
import json

import jax
import numpy as np
import pytest

from experiments.common.didactic import make_world
from experiments.posterior import interface, run
from experiments.posterior.config import Config
from shatter import documents
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

SIZES = {"vocab_size": 3, "max_length": 2}


@pytest.fixture(scope="module")
def model():
    """A world, parameters and the log-probs of all documents."""
    world = make_world("tabular", **SIZES)
    params = world.table.init(jax.random.key(3))
    return world, params, np.asarray(documents.document_log_probs(world.lm, params, *world.space))


def test_a_document_returns_its_log_prob(model):
    world, params, log_probs = model
    walked = jax.jit(lambda params: interface.returns(world, params))(params)
    np.testing.assert_allclose(walked, log_probs, rtol=1e-5)


@pytest.mark.parametrize("temperature", [2.0, 1.0, 0.5])
def test_what_sampling_by_tokens_lacks_is_its_distance_from_the_optimum(model, temperature):
    world, params, log_probs = model
    measured = jax.jit(lambda p: interface.measure_laws(world, p, temperature, **SIZES))(params)
    optimal = np.exp(log_probs / temperature)
    log_z = np.log(optimal.sum())
    optimal /= optimal.sum()
    found = measured["soft_optimal"]
    assert float(found["law_error"]) < 1e-5
    np.testing.assert_allclose(found["soft_value"], temperature * log_z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["return"], optimal @ log_probs, rtol=1e-5)
    np.testing.assert_allclose(found["entropy"], -optimal @ np.log(optimal), rtol=1e-5)
    np.testing.assert_allclose(found["lacking"], 0.0, atol=1e-6)

    logits = np.asarray(world.lm.apply(params, world.space[0])) / temperature
    token_laws = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    tokens, mask = map(np.asarray, world.space)
    chances = np.take_along_axis(token_laws[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    by_token = np.where(mask[:, 1:], chances, 1.0).prod(axis=1)
    distance = by_token @ np.log(by_token / optimal)
    lacking = measured["token_tempered"]["lacking"]
    np.testing.assert_allclose(lacking, temperature * distance, rtol=1e-4, atol=1e-6)
    assert (float(lacking) > 1e-3) == (temperature != 1.0)


def test_the_figure_writes_its_folder(tmp_path, capsys):
    run.experiment(Config(run_dir=str(tmp_path), figure="interface", num_seeds=2, **SIZES))
    folder = tmp_path / "interface_tabular"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["objective"] for row in rows} == set(interface.LAWS)
    assert {row["arm"] for row in rows} == {"temperature=" + t for t in "4 2 1 0.5 0.25".split()}
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary) == 2 * len(interface.TEMPERATURES)
    assert (folder / "interface.png").stat().st_size > 10_000
    assert "lacking to V(root)" in capsys.readouterr().out


def test_the_figure_trains_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"--figure=interface trains nothing: .* found rloo dpo"):
        run.experiment(
            Config(run_dir=str(tmp_path), figure="interface", objectives=("rloo", "dpo"))
        )
