"""The agency experiment: its episodes and gradients, its binary at a tiny size."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.agency import process, run
from experiments.agency.config import ARMS, Config
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = {
    "num_seeds": 2,
    "num_operations": 1,
    "max_operand": 3,
    "num_demonstrations": 6,
    "width": 4,
    "num_layers": 1,
    "num_rounds": 3,
    "imitation_rounds": 1,
    "updates_per_round": 2,
    "batch_size": 4,
    "num_samples": 2,
    "num_evaluated": 2,
    "num_tries": 2,
    "chunk_rounds": 1,
}


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


@pytest.fixture(scope="module")
def setting():
    return process.make_setting(Config(**TINY))


def test_a_run_writes_its_folder_and_gets_more_arms(tmp_path):
    run.experiment(tiny(tmp_path, arms=("imitation",)))
    before = json.loads((tmp_path / "summary.json").read_text())
    run.experiment(tiny(tmp_path))
    after = json.loads((tmp_path / "summary.json").read_text())
    assert list(after["arms"]) == list(ARMS)
    assert after["arms"]["imitation"]["return"] == before["arms"]["imitation"]["return"]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]) for row in rows} == {0, 2, 4, 6}
    first = [r for r in rows if r["metric"] == "kl_from_reference" and r["step"] == "2"]
    kl = {r["arm"]: float(r["value"]) for r in first if r["seed"] == "0"}
    assert kl["imitation_rl"] != 0  # the reference is the start until RL begins, one round later
    assert (tmp_path / "agency.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="quality"):
        run.experiment(tiny(tmp_path, quality=0.7))


def test_the_expert_is_right_as_often_as_its_quality_says(setting):
    shown = jax.jit(lambda key: process.demonstrations(setting, key, 4_000))(jax.random.key(0))
    found = np.mean(np.asarray(shown.rewards).max(axis=1) > 0.5)
    assert found == pytest.approx(0.8**2, abs=0.03)
    assert np.asarray(shown.done).all() and not np.asarray(shown.num_invalid).any()


def test_no_question_is_in_both_parts(setting):
    """A fifth of them is held out."""
    questions = []
    for environment in (setting.environment, setting.held_out):
        states, _ = jax.jit(jax.vmap(environment.reset))(jax.random.split(jax.random.key(5), 400))
        rows = np.concatenate([states.operands, states.operators], axis=1)
        questions.append({tuple(row) for row in rows.tolist()})
    train, held_out = questions
    assert not train & held_out
    assert len(train | held_out) == 3 * 3 * 3 and 3 <= len(held_out) <= 9


def test_tries_share_their_question_and_nothing_else(setting):
    params = jax.jit(setting.lm.init)(jax.random.key(1))
    play = jax.jit(
        lambda params, key: process.episodes(setting, setting.held_out, params, key, 3, 4)
    )
    seen = play(params, jax.random.key(2))
    assert seen.tokens.shape[:2] == (3, 4)
    said = np.where(np.asarray(seen.is_action | ~seen.valid), -1, np.asarray(seen.tokens))
    first = np.argmax(np.asarray(seen.is_action), axis=-1)
    questions = [{tuple(said[q, k, : first[q, k]]) for k in range(4)} for q in range(3)]
    assert all(len(one) == 1 for one in questions) and len(set.union(*questions)) > 1
    assert len({tuple(row) for row in np.asarray(seen.tokens)[0]}) > 1


def test_the_gradient_of_rl_is_that_of_the_leave_one_out_gains(setting):
    """Against the sum over episodes of (gain less the others' mean) times the score."""
    params = jax.jit(setting.lm.init)(jax.random.key(3))
    reference = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    key = jax.random.key(4)

    @jax.jit
    def both(params, reference):
        found = process._reinforce(setting, "imitation_rl", reference, params, key)
        seen = process.episodes(setting, setting.environment, params, key, 2, 2)

        def score(params):
            log_probs = process._log_probs(setting, params, seen)
            return jnp.sum(jnp.where(seen.is_action, log_probs, 0.0), axis=-1)

        beta = setting.config.beta
        gains = jnp.sum(seen.rewards, axis=-1) - beta * (score(params) - score(reference))
        weights = jax.lax.stop_gradient(gains - gains[:, ::-1])
        return found, jax.grad(lambda p: -jnp.mean(weights * score(p)))(params)

    found, expected = both(params, reference)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("ppo",)}, "ppo"),
        ({"imitation_rounds": 3}, "--imitation_rounds must be below"),
        ({"batch_size": 5}, "multiple of --num_samples"),
        ({"width": 6}, "multiple of 4"),
        ({"quality": 1.5}, "--quality"),
        ({"price": 0.5}, "--price"),
        ({"max_operand": 99, "num_operations": 3}, "four digits"),
    ],
)
def test_bad_flags(tmp_path, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        run.experiment(tiny(tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists()
