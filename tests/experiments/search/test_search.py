"""The search experiment: its arms against enumeration, its binary at a tiny size."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.common.didactic import make_world
from experiments.search import arms, run
from experiments.search.config import BEST_OF, BY_PPO, SEARCHES, TRAINED, Config, settled
from shatter import evaluation
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = {
    "num_seeds": 2,
    "num_draws": 3,
    "vocab_size": 3,
    "max_length": 2,
    "budgets": (2, 4, 8),
    "num_comparisons": 20,
    "twist_steps": 5,
    "policy_steps": 4,
    "batch_size": 4,
}
SMALL = settled(Config(num_seeds=2, num_draws=4_000, vocab_size=3, max_length=3, twist="exact"))
WORLD = make_world("tabular", vocab_size=3, max_length=3)


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


def test_a_run_writes_its_folder_and_is_resumed(tmp_path, monkeypatch, capsys):
    """A part that is there is not computed again; an arm may be added."""
    first = (*SEARCHES[:2], TRAINED)
    run.experiment(tiny(tmp_path, arms=first))
    told = capsys.readouterr().out.replace("\n", " ")
    assert "3 arms, budgets up to 8 tokens; about 0 minutes" in told
    before = json.loads((tmp_path / "summary.json").read_text())
    assert {row["arm"] for row in before} == {"problem", *first, BEST_OF[TRAINED]}
    searched = arms.run_search
    done = []
    monkeypatch.setattr(
        arms, "run_search", lambda *given: done.append(given[3:]) or searched(*given)
    )
    (tmp_path / "arms" / "beam_4.npz").unlink()
    run.experiment(tiny(tmp_path))
    assert ("beam", 4) in done and ("beam", 2) not in done and ("tree_gumbel", 4) in done
    after = json.loads((tmp_path / "summary.json").read_text())
    assert [row for row in after if row in before] == before
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == {*SEARCHES, *BEST_OF, *BEST_OF.values()}
    spent = [row for row in rows if row["metric"] == "tokens" and row["arm"] not in BEST_OF]
    assert all(0 < float(row["value"]) <= int(row["step"]) for row in spent)
    assert (tmp_path / "search.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="num_comparisons"):
        run.experiment(tiny(tmp_path, num_comparisons=21))


def expected(problem_number: int, law_of):
    """Returns the learned and the gold reward that a law over all documents expects."""
    problem = jax.tree.map(lambda leaf: leaf[problem_number], arms.problems(SMALL, WORLD))
    learned, gold = map(np.asarray, arms.rewards_of_all(SMALL, WORLD, problem))
    law = np.exp(np.asarray(law_of(WORLD.log_probs(problem.params), learned)))
    return law @ learned, law @ gold


@pytest.mark.parametrize("arm", ["best_of_n", "guided"])
def test_rewards_are_those_of_the_exact_law(arm: str):
    """The best of 4 has the law F^n - F_-^n; decoding by the exact twist has the posterior's."""
    budget = {"best_of_n": 12, "guided": 3}[arm]
    found = arms.run_search(SMALL, WORLD, arms.problems(SMALL, WORLD), arm, budget)
    laws = {
        "best_of_n": lambda p0, r: evaluation.best_of_n_log_probs(p0, r, num_samples=4),
        "guided": lambda p0, r: evaluation.posterior_optimum(p0, r, beta=SMALL.beta)[0],
    }
    for seed in range(2):
        for name, value in zip(("learned", "gold"), expected(seed, laws[arm]), strict=True):
            # Rewards have a deviation of about 1, so that of a mean of 4,000 is about .016.
            assert found[name][seed] == pytest.approx(value, abs=0.08)


@pytest.mark.parametrize("arm", [TRAINED, BY_PPO])
def test_a_trained_policy_comes_near_the_optimum(arm: str):
    config = dataclasses.replace(SMALL, policy_steps=600, beta=0.5)
    problems = arms.problems(config, WORLD)
    found = arms.run_training(config, WORLD, problems, arm)
    gain = found["learned"] - config.beta * found["kl"]
    np.testing.assert_allclose(found["kl"][:, 0], 0.0, atol=1e-5)
    optima = arms.frontier(config, WORLD, problems, np.array([config.beta]))
    best = optima["learned"][:, 0] - config.beta * optima["kl"][:, 0]
    assert (gain[:, -1] > gain[:, 0] + 0.1).all() and (gain[:, -1] < best + 1e-3).all()
    assert (gain[:, -1] > 0.7 * best + 0.3 * gain[:, 0]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("bestofn",)}, "bestofn"),
        ({"twist": "none"}, "twist"),
        ({"budgets": (1, 4)}, "at least one response"),
        ({"budgets": (4, 2)}, "must ascend"),
        ({"budgets": (3,)}, "needs 4 tokens"),
        ({"misfit": 1.0}, "--misfit"),
        ({"beta": 0.0}, "--beta"),
        ({"vocab_size": 80}, "vocab_size"),
        ({"reward_model": "judge"}, "--reward_model needs --setting=pretrained"),
    ],
)
def test_bad_flags(tmp_path, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        run.experiment(tiny(tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists()
