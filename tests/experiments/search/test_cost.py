"""The rough cost that a run prints before it starts."""

import dataclasses

import pytest

from experiments.search.config import Config, settled
from experiments.search.cost import minutes

STORIES = {"parameters": 260_032, "num_features": 128}
SMOLLM2 = {"parameters": 134_515_008, "num_features": 1_152}
JUDGES = {"reward_model": "first", "held_out_reward_model": "second", "num_seeds": 10}
FOUR = ("best_of_n", "beam_by_value", "guided", "smc")


def of(model: dict | None = None, **changes) -> float:
    setting = "pretrained" if model else "exact"
    return minutes(settled(Config(setting=setting, **changes)), **(model or {}))


def test_what_was_measured_is_said():
    """The runs of the README, within a factor of 1.3."""
    trees = ("beam_by_value", "guided", "smc", "tree_gumbel", "tree_muzero")
    assert 3 < of() < 10
    assert of() == pytest.approx(317 / 60, rel=0.3)
    assert of(twist="exact", arms=trees) == pytest.approx(249 / 60, rel=0.3)
    assert of(STORIES) == pytest.approx(664 / 60, rel=0.3)
    assert of(STORIES, arms=FOUR, **JUDGES) == pytest.approx(335 / 60, rel=0.3)


def test_it_grows_with_the_model():
    """SmolLM2 takes hours on a CPU, with few arms and with judges, too."""
    assert of(SMOLLM2) > 100 * of(STORIES)
    assert of(SMOLLM2, num_seeds=5, num_draws=4, arms=FOUR) > 120
    assert of(SMOLLM2, num_draws=4, arms=FOUR, **JUDGES) > 120


@pytest.mark.parametrize("model", [None, STORIES], ids=["exact", "pretrained"])
def test_it_grows_with_the_run(model: dict | None):
    known = settled(Config(setting="pretrained" if model else "exact"))
    cost = lambda **changes: minutes(dataclasses.replace(known, **changes), **(model or {}))
    more = [
        {"num_seeds": 2 * known.num_seeds},
        {"num_draws": 2 * known.num_draws},
        {"policy_steps": 2 * known.policy_steps},
        {"budgets": (*known.budgets, 2 * known.budgets[-1])},
        {"num_prompts": 2 * known.num_prompts} if model else {"vocab_size": 6},
    ]
    assert all(cost(**changes) > cost() for changes in more)
    assert all(cost(arms=known.arms[:number]) < cost() for number in range(1, len(known.arms)))


def test_draws_are_of_every_prompt():
    doubled = lambda prompts: (
        of(STORIES, num_prompts=prompts, num_draws=16)
        - of(STORIES, num_prompts=prompts, num_draws=8)
    )
    assert doubled(8) == pytest.approx(2 * doubled(4))
