"""Runs of the online experiment: resumed to the bit, their folder, flags that are refused."""

import csv
import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from experiments.common import chunks
from experiments.online import process, run
from shatter.cli.common.binary import UsageError
from tests.experiments.online.worlds import load, tiny

pytestmark = pytest.mark.slow  # whole runs of an experiment


@pytest.mark.parametrize("arm", ["infomax", "information_directed"])
def test_a_resumed_run_has_the_same_bits(folder, tmp_path, arm):
    world, fixed = load(folder, tmp_path, "open", utility="tilt")
    fixed = process.make_fixed(world, fixed.params)
    keys = jax.random.split(jax.random.key(0), 2)
    plan = chunks.equal_chunks(2, 2, 1)
    the_run = partial(chunks.run_seeds, process.make_process(world, arm), keys, shared=(fixed,))
    whole = the_run(tmp_path / "whole", plan, seeds_at_once=1)

    def killed(rounds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        the_run(tmp_path / "cut", plan, seeds_at_once=1, progress=killed)
    assert not (tmp_path / "cut" / "metrics.npz").exists()
    resumed = the_run(tmp_path / "cut", plan, seeds_at_once=1)
    for name, values in whole.items():
        np.testing.assert_array_equal(values, resumed[name])
    assert np.ptp(whole["kl"], axis=1).max() > 0  # it learned


def test_a_run_writes_its_folder(folder, tmp_path, capsys):
    config = tiny(folder, tmp_path, arms=("double_thompson",))
    run.experiment(config)
    out = tmp_path / "run" / "closed"
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == {"passive", "double_thompson"}
    kl = [row for row in rows if row["metric"] == "kl"]
    assert {(row["seed"], row["step"]) for row in kl} == {(s, q) for s in "01" for q in "024"}
    starts = {(row["seed"], row["value"]) for row in kl if row["step"] == "0"}
    assert len(starts) == 2  # the arms start from the same members
    summary = json.loads((out / "summary.json").read_text())
    ends = {row["arm"]: row["kl"]["mean"] for row in summary}
    less = summary[1]["less"]["passive"]["kl"]["mean"]
    np.testing.assert_allclose(less, ends["double_thompson"] - ends["passive"], atol=1e-6)
    averages = [
        np.mean([float(r["value"]) for r in kl if r["arm"] == a and r["step"] != "0"]) for a in ends
    ]
    mean_less = summary[1]["mean_less"]["passive"]["kl"]["mean"]
    np.testing.assert_allclose(mean_less, averages[1] - averages[0], atol=1e-6)
    assert (out / "online.png").stat().st_size > 10_000
    before = (out / "metrics.csv").read_text()
    run.experiment(config)
    assert (out / "metrics.csv").read_text() == before
    assert "double_thompson" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"taste: found 5\.0, wanted 2\.0"):
        run.experiment(dataclasses.replace(config, taste=2.0))


def test_bad_flags(folder, tmp_path):
    for changes, message in (
        ({"arms": ("lucky",)}, r"unknown arm 'lucky'; the known ones are: passive, pool_infomax"),
        ({"utility": "odd"}, r"unknown utility 'odd'; the known ones are: sum, tilt"),
        ({"choose_by": "eye"}, r"unknown choose_by 'eye'; the known ones are: density, taste"),
        ({"people": "crowd"}, r"unknown people 'crowd'; the known ones are: mixture, segments"),
        ({"setting": "ajar"}, r"unknown setting 'ajar'; the known ones are: closed, open, chat"),
        ({"num_seeds": 1}, r"--num_seeds must be at least 2, found 1"),
        ({"taste": -1.0}, r"--taste must be positive, found -1"),
        ({"minority": 1.0}, r"--minority must be between 0 and 1, found 1"),
        ({"num_candidates": 5}, r"--num_candidates must be a multiple of --num_members.* 5 and 2"),
        ({"match_lengths": True}, r"--match_lengths: expected --setting=open, found .*=closed"),
        (
            {"match_lengths": True, "setting": "open", "arms": ("infomax", "v_optimal", "online")},
            r"--arms among passive, pool_infomax, sampled, infomax, found v_optimal, online: name",
        ),
        ({"candidate_top_k": 1}, r"--candidate_top_k must be at least 2, found 1"),
        ({"adapted_layers": 2}, r"--adapted_layers must be last_mlp_out or from 1 to 1"),
        ({"nudge": -0.1}, r"--nudge must be .* found -0\.1"),
        (
            {"arms": ("offline",), "period": 3},
            r"--num_rounds must be whole periods.*--num_rounds=2 and --period=3",
        ),
        (
            {"setting": "chat"},
            r"--setting=chat, prompt 'saw a': the tokenizer has no chat template",
        ),
        ({"max_length": 28, "setting": "open"}, r"5 \+ 28 tokens, over the model's 32"),
        ({"prompts": ("saw a", "")}, r"--prompts must be texts that are not empty"),
        ({"model_name_or_path": "nowhere"}, r"--model_name_or_path=nowhere: there is no folder"),
    ):
        with pytest.raises(UsageError, match=message):
            run.experiment(tiny(folder, tmp_path, **changes))
