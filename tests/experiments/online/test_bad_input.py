"""Online: what stops a run before anything is learned, and what it warns of at the end."""

import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments.online import process, run
from shatter.cli.common.binary import UsageError
from tests.experiments.online.worlds import load, tiny


def printed_warning(entropy: float) -> str:
    console = Console(file=io.StringIO(), width=1000)
    run._warn(console, {"arm": "dpo_online", "entropy": {"mean": entropy}})
    return console.file.getvalue()


def test_a_policy_that_says_one_thing_is_warned_of():
    found = printed_warning(0.0312)
    assert "warning: dpo_online says one thing" in found
    assert "0.031 nats" in found and "--beta" in found and "--dpo_beta" in found
    assert "0.099 nats" in printed_warning(0.099)
    for entropy in (run.COLLAPSED, 2.5):
        assert printed_warning(entropy) == ""


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["closed", "open"])
@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_population_that_answers_nan_stops_the_run_before_anything_is_learned(
    folder, tmp_path, monkeypatch, setting, is_damaged
):
    """Whose model says NaN, or whose taste of one text in all is NaN."""
    config = tiny(folder, tmp_path, setting=setting)
    if is_damaged:
        load_world = run.load_world

        def damaged(config):
            world, params = load_world(config)
            return world, jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)

        monkeypatch.setattr(run, "load_world", damaged)
    else:
        tastes = process.tastes

        def one_is_nan(world, tokens, mask):
            found = tastes(world, tokens, mask)
            return found.at[(0,) * found.ndim].set(jnp.nan)

        monkeypatch.setattr(process, "tastes", one_is_nan)
    message = (
        rf"--model_name_or_path={folder}: expected finite log-probs of the base .* name a model"
        if is_damaged
        else r"--taste=[45]\.0: expected finite normalisers of the population.* choose a smaller"
    )
    with pytest.raises(UsageError, match=message):
        run.experiment(config)
    assert not (tmp_path / "run" / setting / "arms").exists()


@pytest.mark.slow
def test_a_rater_whose_utilities_are_nan_is_refused(folder, tmp_path, monkeypatch):
    """Though the normalisers are finite: what people choose by is checked too."""
    world, fixed = load(folder, tmp_path, "open")
    of_nan = lambda world, fixed, known: jnp.nan * known.log_p0[..., None]
    monkeypatch.setattr(process, "log_tilts", of_nan)
    with pytest.raises(
        UsageError, match=r"--taste=4\.0: expected finite utilities by which people"
    ):
        process.make_fixed(world, fixed.params)
