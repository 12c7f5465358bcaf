"""What the online experiment says about made-up curves, and what its arms cost."""

import numpy as np
import pytest

from experiments.common.curves import Curve, win_rate_at
from experiments.online.config import Config, settled
from experiments.online.summary import arm_cost, summarise

QUERIES = np.arange(5) * 24
NAMES = ("models", "heads", "answer_steps", "policy_steps", "samples")
CONFIG = settled(
    Config(
        "open",
        prompts=("a", "b", "c"),
        num_rounds=4,
        period=2,
        queries_per_round=5,
        num_candidates=6,
        num_members=3,
        num_particles=7,
        num_steps=10,
        policy_steps=2,
        policy_batch=4,
    )
)


def metrics(wins):
    two = lambda curve: np.stack([curve, curve])
    names = ("kl", "base_kl", "win_rate")
    return {name: np.ones((2, 5)) for name in names} | {"win_greedy": two(np.array(wins))}


def test_curves_of_win_rates_are_fitted_and_read():
    curve = Curve(0.7 * np.log(5.0), 0.7)
    offline = np.append(0.5, win_rate_at(curve, QUERIES[1:]))
    online = np.append(offline[:-1], win_rate_at(curve, 3.0 * QUERIES[-1]))
    early = np.array([0.5, offline[-1], 0.5, 0.5, 0.5])
    arms = {"offline": offline, "online": online, "passive": early, "dpo_online": offline / 2}
    results = {arm: metrics(wins) for arm, wins in arms.items()}
    rows = {arm: summarise(CONFIG, arm, results, QUERIES) for arm in arms}
    assert rows["offline"]["curve"]["win_greedy"]["b"]["mean"] == pytest.approx(0.7)
    assert rows["offline"]["curve"]["win_greedy"]["a"] == pytest.approx(5.0)
    assert rows["online"]["extrapolated"]["win_greedy"]["mean"] == pytest.approx(3.0)
    labels = {arm: row["labels"]["win_greedy"] for arm, row in rows.items()}
    assert (labels["passive"]["median"], labels["passive"]["never"]) == (24, 0)
    assert (labels["online"]["median"], labels["online"]["never"]) == (96, 0)
    assert (labels["dpo_online"]["median"], labels["dpo_online"]["never"]) == (96, 1)
    alone = summarise(CONFIG, "online", {"online": results["online"]}, QUERIES)
    assert "curve" in alone
    assert not {"labels", "extrapolated"} & set(alone)


def test_one_round_makes_no_curve():
    short = {"online": {name: curve[:, :2] for name, curve in metrics([0.5] * 5).items()}}
    assert "curve" not in summarise(CONFIG, "online", short, QUERIES[:2])


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("passive", (4, 0, 3 * 40, 0, 4 * 5 * 6)),
        ("dpo_online", (2, 0, 40, 0, 4 * 5 * 6)),
        ("online", (3, 1, 40, 8, 4 * 5 * 6 + 8 * 2 * 4 * 3)),
        ("offline", (3, 1, 40, 8, 4 * 5 * 6 + 8 * 2 * 4 * 3)),
        ("periodic", (3, 1, 40, 4 + 8, 4 * 5 * 6 + 12 * 2 * 4 * 3)),
        ("information_directed", (3, 8, 8 * 40, 8, 4 * 5 * 6 + 8 * 2 * 4 * 3)),
    ],
)
def test_what_an_arm_costs(arm, expected):
    assert tuple(arm_cost(CONFIG, arm)[name] for name in NAMES) == expected


def test_queries_about_a_prompt_share_their_candidates_in_chat():
    chat = settled(Config("chat", num_rounds=2, queries_per_round=50, num_candidates=6))
    assert arm_cost(chat, "passive")["samples"] == 2 * len(chat.prompts) * 6
