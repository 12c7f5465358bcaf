"""The rlhf experiment: its domains and measures against numpy, its binary at a tiny size."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import chunks
from experiments.rlhf import run
from experiments.rlhf.config import Config
from experiments.rlhf.domains import Problem, make_domain
from experiments.rlhf.measures import over_optimisation
from experiments.rlhf.objectives import OBJECTIVES
from experiments.rlhf.process import make_process
from experiments.rlhf.rollouts import roll_out
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = {
    "num_seeds": 2,
    "betas": (1.0, 0.5),
    "vocab_size": 3,
    "max_length": 2,
    "num_comparisons": 32,
    "batch_size": 4,
    "num_steps": 16,
    "record_every": 4,
    "pretraining_steps": 2,
}
SHARES = [
    {"prompt": "tea or coffee", "completions": ["tea", "coffee"], "shares": [0.3, 0.7], "n": 9},
    {"prompt": "best", "completions": ["cat", "dog", "cow"], "shares": [0.5, 0.4, 0.1], "n": 9},
]


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


def with_shares(tmp_path, **changes):
    file = tmp_path / "shares.jsonl"
    file.write_text("\n".join(map(json.dumps, SHARES)))
    return tiny(tmp_path, population="shares", shares_file=str(file), **changes)


def test_a_run_writes_its_folder_and_is_resumed(tmp_path, capsys, monkeypatch):
    """A run without --objectives has all of the table, here of a short one."""
    table = {name: OBJECTIVES[name] for name in ("ilhf", "rlhf", "rm_posterior")}
    monkeypatch.setattr(run, "OBJECTIVES", table)
    config = tiny(tmp_path)
    run.experiment(config)
    folder = tmp_path / "didactic_tabular"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["objective"] for row in rows} == set(table)
    starts = {(r["seed"], r["value"]) for r in rows if r["metric"] == "kl" and r["step"] == "0"}
    assert len(starts) == 2  # every objective faces the same problems
    summary = json.loads((folder / "summary.json").read_text())
    assert {row["networks"] for row in summary} == {2, 4}
    assert all(row["milliseconds_a_step"] > 0 for row in summary)
    assert (folder / "rlhf.png").stat().st_size > 10_000
    before = (folder / "metrics.csv").read_text()
    (folder / "arms" / "rlhf" / "metrics.npz").unlink()
    run.experiment(config)
    assert (folder / "metrics.csv").read_text() == before
    assert "KL(q_g || pi) by segment g" in capsys.readouterr().out


def test_every_objective_faces_the_same_problem_and_learns(tmp_path):
    """All objectives start and run a round in one program, which draws the problem once."""
    config = tiny(tmp_path)
    domain = make_domain(config)
    drawn = jax.tree.map(lambda leaf: leaf[0], domain.inputs)

    @jax.jit
    def start_and_round(drawn, key, beta):
        metrics = {}
        for name, objective in OBJECTIVES.items():
            process = make_process(config, domain, objective)
            state, first = process.start((drawn, key, beta))
            _, later = process.rounds(state, jnp.asarray(0), chunks.Chunk(1, 1))
            metrics[name] = first, jax.tree.map(lambda values: values[0], later)
        return metrics

    metrics = start_and_round(drawn, jax.random.key(1), jnp.asarray(0.5))
    assert set(metrics) == set(OBJECTIVES)
    assert len({f"{first['kl']:.6g}" for first, _ in metrics.values()}) == 1
    for name, (first, later) in metrics.items():
        assert set(first) == set(later), name
        assert all(np.isfinite(value).all() for value in jax.tree.leaves(later)), name
        trains_rewards_first = name in ("rlhf", "rlhf_adaptive")
        assert (f"{first['kl']:.6g}" == f"{later['kl']:.6g}") == trains_rewards_first, name


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of a table on recorded shares: its folder and its domain."""
    folder = tmp_path_factory.mktemp("recorded")
    config = with_shares(folder, objectives=("ilhf", "rlhf"), num_comparisons=30_000)
    domains = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_domain", lambda c: domains.append(make_domain(c)) or domains[0])
        run.experiment(config)
    return folder, domains[0]


def test_recorded_people(recorded):
    folder, _ = recorded
    assert (folder / "shares_tabular" / "rlhf.png").exists()


@pytest.mark.slow
def test_recorded_people_with_a_transformer(tmp_path):
    run.experiment(with_shares(tmp_path, model="transformer", objectives=("ilhf", "rlhf")))
    assert (tmp_path / "shares_transformer" / "rlhf.png").exists()


def test_bad_flags(tmp_path):
    with pytest.raises(UsageError, match=r"unknown objective 'luck'; the known ones are: ilhf, "):
        run.experiment(tiny(tmp_path, objectives=("luck",)))
    with pytest.raises(UsageError, match=r"--betas must be positive, found \(-1.0,\)"):
        run.experiment(tiny(tmp_path, betas=(-1.0,)))
    with pytest.raises(UsageError, match=r"--num_steps of twice --record_every, found 4 and 12"):
        run.experiment(tiny(tmp_path, num_steps=12))
    with pytest.raises(UsageError, match=r"--minority must be between 0 and 1, found 1.0"):
        run.experiment(tiny(tmp_path, minority=1.0))
    with pytest.raises(UsageError, match=r"--slic_regulariser must be at least 0, found -1"):
        run.experiment(tiny(tmp_path, slic_regulariser=-1))


def test_the_didactic_law_is_the_mixture_and_choices_follow_it(tmp_path):
    config = tiny(tmp_path, vocab_size=2, max_length=1, num_comparisons=20_000, minority=0.4)
    domain = make_domain(config)
    problem = jax.jit(domain.draw)(domain.inputs[0])
    segments = np.exp(np.stack([segment[0] for segment in problem.segments]))
    np.testing.assert_allclose(
        np.exp(problem.log_q[0]), 0.6 * segments[0] + 0.4 * segments[1], rtol=1e-5
    )
    q = np.exp(np.asarray(problem.log_q[0]))  # two documents: the pair's law is q itself
    share = np.mean(np.asarray(problem.chosen) == 0)
    assert abs(share - q[0]) < 4 * np.sqrt(q[0] * q[1] / 20_000)
    assert (np.asarray(problem.chosen) != np.asarray(problem.rejected)).all()


def test_recorded_choices_follow_the_shares(recorded):
    _, domain = recorded
    problem = jax.jit(domain.draw)(jax.tree.map(lambda leaf: leaf[0], domain.inputs))
    prompts, chosen, rejected = map(np.asarray, (problem.prompts, problem.chosen, problem.rejected))
    assert chosen[prompts == 0].max() == rejected[prompts == 0].max() == 1  # no third option
    assert abs(np.mean(prompts == 0) - 0.5) < 4 * 0.5 / np.sqrt(30_000)
    pair = (prompts == 1) & (chosen + rejected == 2) & (chosen != rejected)  # cat or cow
    share = np.mean(chosen[pair] == 0)
    assert abs(share - 5 / 6) < 4 * np.sqrt(5 / 36 / pair.sum())
    assert np.exp(np.asarray(problem.log_p0)).sum(axis=1) == pytest.approx(np.ones(2), abs=1e-5)
    assert float(problem.log_p0[0, 2]) < -1e29


def fixed_problem() -> Problem:
    log_q = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    log_p0 = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]]))
    nothing = jnp.zeros(0, int)
    return Problem((), log_p0, log_q, (), nothing, nothing, nothing)


def test_where_objectives_end():
    problem, beta = fixed_problem(), jnp.asarray(0.5)
    dpo = OBJECTIVES["dpo"].optimum(problem, beta)
    np.testing.assert_allclose(np.exp(dpo), [[0.32, 0.36, 0.24, 0.08]], rtol=1e-5)
    np.testing.assert_array_equal(OBJECTIVES["ilhf"].optimum(problem, beta), problem.log_q)
    q = np.array([0.4, 0.3, 0.2, 0.1])
    potential = (q[:, None] / (q[:, None] + q) - 0.5).mean(axis=1) / 0.5
    ipo = np.array([0.1, 0.2, 0.3, 0.4]) * np.exp(potential)
    found = np.exp(OBJECTIVES["ipo"].optimum(problem, beta))
    np.testing.assert_allclose(found, [ipo / ipo.sum()], rtol=1e-5)


def test_rewards_of_a_rollout_hold_the_penalty():
    """The target of the value function is the reward with its penalty: one action an episode."""
    problem = fixed_problem()
    log_probs = jnp.log(jnp.array([[0.7, 0.1, 0.1, 0.1]]))
    rewards = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    rollout = roll_out(
        jax.random.key(0), problem, log_probs, jnp.array([0.5]), rewards, jnp.asarray(0.3), 200
    )
    at = np.asarray(rollout.responses)
    ratio = (np.asarray(log_probs) - np.asarray(problem.log_p0))[0, at]
    np.testing.assert_allclose(rollout.targets, rewards[0, at] - 0.3 * ratio, rtol=1e-5)
    np.testing.assert_allclose(rollout.kl, ratio.mean(), rtol=1e-5)
    advantages = np.asarray(rollout.targets) - 0.5
    white = (advantages - advantages.mean()) / advantages.std()
    np.testing.assert_allclose(rollout.advantages, white, rtol=1e-4, atol=1e-5)


def test_a_wrong_reward_is_over_optimised():
    """The gold reward falls if the learned reward is wrong about the best document."""
    problem = fixed_problem()
    wrong = problem.log_q + jnp.array([[0.0, 0.0, 0.0, 3.0]])
    curves = over_optimisation(problem, wrong, jnp.array([100.0, 1.0, 0.01]))
    assert curves["learned_curve"][2] > curves["learned_curve"][1] > curves["learned_curve"][0]
    assert curves["gold_curve"][2] < curves["gold_curve"][0]
    np.testing.assert_allclose(curves["gold_curve"][2], np.log(0.1), rtol=1e-3)
