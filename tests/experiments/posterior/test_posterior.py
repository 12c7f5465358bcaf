"""The posterior experiment: its problem and samplers against numpy, its binary at a tiny size."""

import csv
import inspect
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.didactic import make_world
from experiments.posterior import config as config_module
from experiments.posterior import problem as problems
from experiments.posterior import run, samplers
from experiments.posterior.base import Setup
from experiments.posterior.config import OBJECTIVES, Config
from experiments.posterior.methods import METHODS
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = {
    "num_seeds": 2,
    "betas": (1.0, 0.5),
    "vocab_size": 3,
    "max_length": 2,
    "batch_size": 4,
    "num_steps": 8,
    "record_every": 4,
    "smc_runs": 4,
}


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_collapse_writes_its_folder_and_is_resumed(tmp_path):
    config = tiny(tmp_path)
    run.experiment(config)
    folder = tmp_path / "collapse_tabular"
    rows = rows_of(folder)
    arms = {(row["objective"], row["arm"]) for row in rows}
    assert arms == {
        ("reward", "no beta"),
        ("reward_exact", "no beta"),
        ("rloo", "beta=1"),
        ("rloo", "beta=0.5"),
    }
    kl = [row for row in rows if row["metric"] == "kl" and row["arm"] == "beta=1"]
    assert [int(row["step"]) for row in kl] == [0, 4, 8] * 2
    assert all(abs(float(row["value"])) < 1e-6 for row in kl if row["step"] == "0")
    assert len(json.loads((folder / "summary.json").read_text())) == len(arms)
    assert (folder / "collapse.png").stat().st_size > 10_000
    before = (folder / "metrics.csv").read_text()
    (folder / "arms" / "posterior" / "rloo" / "metrics.npz").unlink()
    run.experiment(config)
    assert (folder / "metrics.csv").read_text() == before


def test_frontier_has_the_samplers_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(samplers, "BUDGETS", (4,))
    objectives = ("ilhf", "ppo")
    run.experiment(tiny(tmp_path, figure="frontier", num_steps=4, objectives=objectives))
    folder = tmp_path / "frontier_tabular"
    shown = {row["objective"] for row in rows_of(folder)}
    samples = {"best_of_n", "rejection", "importance", "smc", "weighted_decoding"}
    assert shown == {*objectives, *samples}
    assert (folder / "frontier.png").stat().st_size > 10_000
    assert "KL(p* || pi)" in capsys.readouterr().out


def test_constraints(tmp_path, monkeypatch):
    """Documents have two tokens, so that token 1 can occur twice in a row."""
    monkeypatch.setattr(samplers, "BUDGETS", (4,))
    run.experiment(
        tiny(tmp_path, figure="constraints", objectives=("gdc", "rloo"), num_steps=4, moment=0.6)
    )
    folder = tmp_path / "constraints_tabular"
    rows = rows_of(folder)
    assert {row["setting"] for row in rows} == {"pointwise", "moment"}
    pointwise = {r["arm"] for r in rows if r["setting"] == "pointwise" and r["objective"] == "gdc"}
    assert pointwise == {"no beta"}
    assert (folder / "constraints.png").stat().st_size > 10_000


def test_transformer_begins_near_the_table(tmp_path):
    run.experiment(tiny(tmp_path, model="transformer", objectives=("rloo",), num_steps=4))
    assert (tmp_path / "collapse_transformer" / "collapse.png").exists()


def test_bad_flags(tmp_path):
    with pytest.raises(UsageError, match=r"unknown objective 'luck'; the known ones are: reward, "):
        run.experiment(tiny(tmp_path, objectives=("luck",)))
    with pytest.raises(UsageError, match=r"--betas must be positive, found \(1.0, 0.0\)"):
        run.experiment(tiny(tmp_path, betas=(1.0, 0.0)))
    with pytest.raises(UsageError, match=r"--record_every must be a multiple of 4 and divide --nu"):
        run.experiment(tiny(tmp_path, record_every=6, num_steps=12))
    with pytest.raises(UsageError, match=r"--moment must be between 0 and 1, found 1.5"):
        run.experiment(tiny(tmp_path, moment=1.5))
    with pytest.raises(UsageError, match=r"at most 5000, .* found 4 \*\* 8 = 65536"):
        run.experiment(tiny(tmp_path, vocab_size=4, max_length=8))


@pytest.fixture
def world():
    return make_world("tabular", vocab_size=3, max_length=2)


def test_measures_of_the_target_itself(world):
    problem = problems.draw_problem(
        jax.random.key(0), jnp.asarray(0.5), world, problems.gaussian_reward
    )
    strengths = np.exp(np.asarray(problem.log_p0) + np.asarray(problem.rewards) / 0.5)
    target = strengths / strengths.sum()
    found = problems.measure(problem, jnp.log(jnp.asarray(target)))
    np.testing.assert_allclose(found["target_kl"], 0.0, atol=1e-6)
    np.testing.assert_allclose(found["reward"], (target * problem.rewards).sum(), rtol=1e-5)
    kl = (target * (np.log(target) - np.asarray(problem.log_p0))).sum()
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(found["distinct"], (1 - (1 - target) ** 100).sum(), rtol=1e-3)


def test_constraints_mean_what_they_say(world):
    tokens = np.asarray(world.space[0])
    log_p0 = jnp.log(jnp.full(len(tokens), 1 / len(tokens)))
    rewards, beta, target, satisfied = problems.pointwise_constraint(world.space[0])(
        log_p0, log_p0, jnp.asarray(0.3)
    )
    expected = [tuple(row[1:]) == (1, 1) for row in tokens]
    np.testing.assert_array_equal(satisfied, expected)
    np.testing.assert_array_equal(rewards, np.asarray(expected, float))
    assert float(beta) == pytest.approx(0.3)
    np.testing.assert_array_equal(np.asarray(target) > -1e29, expected)
    rewards, beta, target, satisfied = problems.moment_constraint(world.space[0])(
        log_p0, log_p0, jnp.asarray(0.7)
    )
    np.testing.assert_array_equal(satisfied, (tokens[:, 1:] == 2).any(axis=1))
    np.testing.assert_allclose(target - log_p0, rewards / beta, atol=1e-6)


def test_rejection_law_is_that_of_trying_n_times():
    p0 = np.array([0.2, 0.5, 0.3])
    weights = np.array([1.0, 0.5, 0.25])
    target = p0 * weights / (p0 * weights).sum()
    expected = np.zeros(3)
    for first, second in itertools.product(range(3), repeat=2):
        chance = p0[first] * p0[second]
        expected[first] += chance * weights[first]
        expected[second] += chance * (1 - weights[first])  # accepted or not, it is the last
    law = samplers._rejection_law(*(jnp.log(jnp.asarray(x)) for x in (p0, target, weights)), 2)
    np.testing.assert_allclose(np.exp(law), expected, rtol=1e-5)


def test_every_method_has_a_gradient(world):
    """Every method draws, remembers and is differentiated once, all in one program."""
    assert {name for names in OBJECTIVES.values() for name in names} <= set(METHODS)
    setup = Setup(world, 8)

    @jax.jit
    def slopes(key):
        problem = problems.draw_problem(key, jnp.asarray(0.5), world, problems.gaussian_reward)
        norms = {}
        for name, method in METHODS.items():
            trainable, memory = method.start(problem)
            batch = method.draw(setup, problem, trainable, memory, key)
            method.remember(setup, problem, trainable, memory, batch)
            loss = lambda t, m=method, b=batch: m.loss(setup, problem, t, b)
            norms[name] = jnp.linalg.norm(jax.grad(loss)(trainable).policy)
        return norms

    for name, norm in slopes(jax.random.key(0)).items():
        assert np.isfinite(norm), name
        assert norm > 1e-4, name


def test_methods_reach_the_posterior(tmp_path):
    """By exact measures after a few hundred steps; clipping keeps PPO a little away."""
    names = ("fdpg_forward_kl", "gdc", "ppo")
    config = tiny(
        tmp_path, objectives=names, num_steps=400, record_every=100, batch_size=64, betas=(1.0,)
    )
    run.experiment(config)
    rows = json.loads((tmp_path / "collapse_tabular" / "summary.json").read_text())
    assert [row["objective"] for row in rows] == list(names)
    for row in rows:
        assert row["target_kl"]["mean"] < 0.03, row["objective"]
        assert row["kl"]["mean"] > 0.1, row["objective"]


def test_help_names_every_objective():
    source = inspect.getsource(config_module)
    assert all(name in source for name in METHODS)


def test_weights_that_mean_little_are_told(tmp_path, world):
    """A tiny beta, where one rare document decides, warns; a target without mass raises."""
    config = tiny(tmp_path)
    levels = [jnp.full(2, 100.0), jnp.full(2, 0.01)]

    def rare(log_p0, drawn, level):
        return -log_p0, level, log_p0 - log_p0 / level, drawn > 0

    (line,) = samplers.weight_warnings(config, world, rare, levels)
    assert "the effective sample size under the target at level 0.01 is" in line

    def impossible(log_p0, drawn, level):
        return drawn, level, jnp.full(log_p0.shape, -1e30), drawn > 0

    with pytest.raises(ValueError, match=r"no sample has mass under the target at level 100"):
        samplers.weight_warnings(config, world, impossible, levels)
