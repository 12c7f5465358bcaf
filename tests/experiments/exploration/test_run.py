"""The exploration binary at a tiny size: its results, its resume, its errors."""

import csv
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.chunks import Chunk
from experiments.common.didactic import open_logits
from experiments.exploration import learners, process, run, summary
from experiments.exploration.arms import ARMS, arm_of
from experiments.exploration.config import Config, settings
from experiments.exploration.process import make_process
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = {
    "num_seeds": 3,
    "num_members": 2,
    "vocab_size": 3,
    "max_length": 2,
    "num_rounds": 4,
    "queries_per_round": 2,
    "num_candidates": 3,
    "num_steps": 1,
    "chunk_rounds": 2,
}


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


def test_a_run_writes_its_folder_and_is_resumed(tmp_path, capsys):
    config = tiny(tmp_path, figure="arms", arms=("greedy", "infomax"))
    run.experiment(config)
    folder = tmp_path / "arms"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    arms = {row["arm"] for row in rows}
    assert arms == {"greedy", "infomax", "passive", "v_optimal"}  # the claim and passive always
    kl = [row for row in rows if row["metric"] == "kl" and row["arm"] == "infomax"]
    assert len(kl) == 3 * 5
    assert sorted({int(row["step"]) for row in kl}) == [0, 2, 4, 6, 8]
    starts = {
        (row["seed"], row["value"])
        for row in rows
        if row["metric"] == "pretrained_kl" and row["step"] == "0"
    }
    assert len(starts) == 3  # all arms face the same problems
    table = json.loads((folder / "summary.json").read_text())
    assert {row["arm"] for row in table} == arms
    assert (folder / "arms.png").stat().st_size > 10_000
    before = (folder / "metrics.csv").read_text()
    (folder / "arms" / "arms" / "infomax" / "metrics.npz").unlink()
    run.experiment(config)
    assert (folder / "metrics.csv").read_text() == before
    assert "clearly better than v_optimal: " in capsys.readouterr().out


def test_the_default_figure_has_harder_settings(tmp_path):
    names = [s.name for s in settings(tiny(tmp_path), tuple(ARMS))]
    assert names == ["default", "prior_scale=2.0", "num_segments=2"]
    lengths = settings(tiny(tmp_path, figure="length"), tuple(ARMS))
    assert [s.config.max_length for s in lengths] == [3, 4, 5, 6, 7]
    assert [s.config.num_rounds for s in lengths] == [4, 4, 8, 8, 8]


def test_a_transformer_learns(tmp_path):
    small = {"max_length": 1, "num_rounds": 4, "num_steps": 1}
    run.experiment(tiny(tmp_path, figure="transformer", arms=("thompson",), **small))
    assert (tmp_path / "transformer" / "transformer.png").exists()


@functools.cache
def ran(setting, arm):
    """The state after two rounds of two seeds, and the metrics."""
    start, rounds = make_process(setting, arm)
    one = lambda key: rounds(start(key)[0], jnp.asarray(0), Chunk(2, 2))
    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2))


# One arm of every way to ask.
WAYS = ["v_optimal", "v_optimal_samples", "v_optimal_all", "v_optimal_pair", "laplace", "passive"]
WAYS += ["boltzmann", "boltzmann_point", "infomax"]


@pytest.mark.parametrize("arm", WAYS)
def test_an_arm_asks_about_two_different_documents(tmp_path, arm):
    (setting,) = settings(tiny(tmp_path, figure="arms", num_seeds=2), (arm,))
    (_, state, _), metrics = ran(setting, arm)
    shown = np.asarray(state.members.store.comparisons.query.item_ids)[:, :4]
    assert np.all(shown[..., 0] != shown[..., 1])
    for name in ("kl", "point_kl", "own_regret"):
        assert np.all(np.isfinite(metrics[name]))
    # Both learners learned from the same answers.
    point, members = state.point.store.comparisons, state.members.store.comparisons
    jax.tree.map(np.testing.assert_array_equal, point, members)


def test_the_posterior_of_a_table_is_the_inverse_of_its_curvature(tmp_path, float64):
    (setting,) = settings(tiny(tmp_path, figure="arms"), ("uniform",))
    (_, state, _), _ = ran(setting, "uniform")
    state = jax.tree.map(lambda leaf: leaf[0], state)
    world = process.make_world("tabular", vocab_size=3, max_length=2)
    jacobian, covariance = learners.posterior(setting, world, state.point)
    params = state.point.members.params[0]
    used = open_logits(3, 2)
    expected = jax.jacfwd(world.log_probs)(params).reshape(len(jacobian), -1)
    np.testing.assert_allclose(jacobian, expected[:, used], atol=1e-6)
    items = np.asarray(state.point.store.comparisons.query.item_ids)[:4]

    def loss(theta):  # linear around the point estimate, the generalised Gauss-Newton curvature
        utilities = world.log_probs(params) + jacobian @ theta
        gaps = utilities[items[:, 0]] - utilities[items[:, 1]]
        # Either answer has the same curvature.
        return -jnp.sum(jax.nn.log_sigmoid(gaps)) + jnp.sum(theta**2) / (2 * 2.5**2)

    curvature = jax.hessian(loss)(jnp.zeros(jacobian.shape[1]))
    np.testing.assert_allclose(covariance @ curvature, np.eye(len(curvature)), atol=2e-5)


def test_flags_choose_candidates_and_temperature():
    arm = arm_of("infomax", source="point", temperature=3.0)
    assert (arm.source, arm.temperature) == ("point", 3.0)
    assert arm_of("passive", source="point", temperature=3.0) == ARMS["passive"]
    assert arm_of("infomax", source=None, temperature=None) == ARMS["infomax"]


def test_queries_of_three_responses_are_ranked(tmp_path):
    (setting,) = settings(tiny(tmp_path, figure="arms", num_responses=3), ("uniform",))
    (_, state, _), metrics = ran(setting, "uniform")
    ranks = np.asarray(state.members.store.comparisons.ranks)[:, :4].reshape(-1, 3)
    np.testing.assert_array_equal(np.sort(ranks, axis=1), [[1, 2, 3]] * 8)
    assert len(np.unique(ranks, axis=0)) > 1
    assert np.isfinite(metrics["kl"]).all()


def test_bad_flags(tmp_path):
    with pytest.raises(UsageError, match=r"unknown arm 'lucky'; the known ones are: v_optimal, v_"):
        run.experiment(tiny(tmp_path, arms=("lucky",)))
    with pytest.raises(UsageError, match=r"--num_seeds must be at least 2, found 1"):
        run.experiment(tiny(tmp_path, num_seeds=1))
    with pytest.raises(UsageError, match=r"at most 100000, .* found 4 \*\* 12 = 16777216"):
        run.experiment(tiny(tmp_path, vocab_size=4, max_length=12))
    with pytest.raises(UsageError, match=r"--num_responses must be from 2 to 4, .* found 5"):
        run.experiment(tiny(tmp_path, num_responses=5))
    with pytest.raises(UsageError, match=r"--num_candidates must be at least 4, found 3"):
        run.experiment(tiny(tmp_path, num_responses=4, vocab_size=4))
    with pytest.raises(UsageError, match=r"--spread must be positive, found nan"):
        run.experiment(tiny(tmp_path, spread=float("nan")))
    with pytest.raises(UsageError, match=r"--temperature must be positive, found 0"):
        run.experiment(tiny(tmp_path, temperature=0.0))
    with pytest.raises(UsageError, match=r"laplace needs pairs .* found --num_responses=3"):
        run.experiment(tiny(tmp_path, arms=("laplace",), num_responses=3))
    with pytest.raises(UsageError, match=r"--num_segments above 1 needs pairs, found"):
        run.experiment(tiny(tmp_path, num_segments=2, num_responses=3))


def results(setting, **curves):
    """Results of arms whose curves are given, from a pretrained KL of 2."""
    start = np.full((3, 5), 2.0)
    more = {"pretrained_kl": start, "own_regret": start}
    return {
        (setting, arm): {"kl": np.array(kl), "point_kl": np.array(kl), **more}
        for arm, kl in curves.items()
    }


def test_levels_savings_and_the_claim(tmp_path):
    (setting,) = settings(tiny(tmp_path, figure="arms"), ("infomax",))
    queries = np.arange(5) * 2
    found = results(
        setting,
        v_optimal=[[2.0, 1.5, 0.9, 0.6, 0.2]] * 3,
        passive=[[2.0, 1.9, 1.8, 1.7, 1.6]] * 3,
        infomax=[[2.0, 1.5, 0.9, 0.4, 0.1]] * 3,
    )
    rows = [summary.summarise(setting, arm, found, queries) for _, arm in found]
    claim, passive, infomax = rows
    assert claim["half"]["mean"] == claim["half"]["median"] == 4
    assert claim["half"]["arrived"] == [0, 0, 1, 1, 1]
    # Passive learning never gets to half, so its budget of 8 counts, a bound.
    assert (passive["half"]["never"], claim["half"]["never"]) == (1.0, 0.0)
    assert claim["half"]["saving"]["mean"] == 2.0
    # It ends at 1.6 after 8 labels; the claim is there after 2.
    assert claim["passive"]["saving"]["mean"] == 4.0
    assert claim["saving"] == {"mean": 4.0, "low": 4.0, "high": 4.0}
    assert passive["saving"]["mean"] == 1.0
    assert infomax["less_claim"] == pytest.approx({"mean": -0.1, "low": -0.1, "high": -0.1})
    assert infomax["times_claim"]["mean"] == pytest.approx(0.5)
    assert claim["less_passive"]["mean"] == pytest.approx(-1.4)
    assert summary.claim_holds(rows) == {"arms": ["infomax"]}


def test_nothing_is_saved_where_passive_learning_ends_above_its_start(tmp_path):
    (setting,) = settings(tiny(tmp_path, figure="arms"), ("infomax",))
    found = results(setting, v_optimal=[[2.0, 1.5, 0.9]] * 3, passive=[[2.0, 2.1, 2.2]] * 3)
    row = summary.summarise(setting, "v_optimal", found, np.arange(3) * 2)
    assert row["saving"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
