"""Every division is fine-tuned with every condition, and what groups want is learned by groups."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.people import export, finetuned
from experiments.people.finetuned import Config
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import checks
from tests.experiments.people.test_people import made_up


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "house"}, "kind of rows"),
        ({"conditions": ("annotator",)}, "condition"),
        ({"conditions": ("examples",)}, "pass --by=person"),
        ({"num_seeds": 1}, "num_seeds"),
    ],
)
def test_bad_flags(changes, message):
    with pytest.raises(UsageError, match=message):
        finetuned.check(dataclasses.replace(Config(), **changes))


def test_measures_are_found_under_their_names():
    row = {"eval_new/soft_kl": 1.0, "eval_new/person_log_loss": 3.0}
    row |= {"eval_new/group=a/soft_kl": 1.5, "eval_new/group=b/soft_kl": 2.5}
    row |= {
        f"eval_new_as_everybody/{name.removeprefix('eval_new/')}": v + 10 for name, v in row.items()
    }
    row["kl"] = 4.0
    found = finetuned.measures(row, "group")
    assert found == {
        "kl": 11.0,
        "group_kl": 2.0,
        "log_loss": 3.0,
        "log_loss_as_everybody": 13.0,
        "kl_from_pretrained": 4.0,
    }
    assert finetuned.measures(row, "none")["kl"] == 1.0
    uniform = {"eval_new/soft_kl": 0.75}
    runs = {"before": row, "after": row | {"eval_new/soft_kl": 0.5}}
    found = finetuned.compared(runs, uniform, "none")
    names = ("kl, before", "kl", "kl, uniform", "kl less uniform")
    assert [found[name] for name in names] == [1.0, 0.5, 0.75, -0.25]
    assert "group_kl less uniform" not in found


def test_flags_of_one_condition_are_not_passed_to_another(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "write_files", lambda rows: None)
    changes = {"by": "person", "num_examples": 2, "min_group_size": 1, "data_dir": str(tmp_path)}
    config = Config(conditions=finetuned.CONDITIONS, model_name_or_path=str(tmp_path), **changes)
    for condition in finetuned.CONDITIONS:
        setting = finetuned._setting(config, condition, 0, tmp_path)
        (tmp_path / "files" / "division0").mkdir(parents=True, exist_ok=True)
        for file in (setting.dataset_name, *setting.eval_dataset_name):
            Path(file).touch()
        checks.check(setting)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["group", "person"])
def test_a_tiny_run(by, make_model, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(export, "load_poll", lambda name, data_dir: made_up())
    make_model(tmp_path / "tiny", 2, "Group of the person who answers: a b c d".split())
    config = Config(
        dataset="polis",
        by=by,
        conditions=("none", "group", *(("examples",) if by == "person" else ())),
        num_examples=2,
        model_name_or_path=str(tmp_path / "tiny"),
        run_dir=str(tmp_path / "runs"),
        num_seeds=2,
        num_persons=20,
        max_steps=60,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        max_length=32,
        kl_samples=2,
        kl_length=4,
    )
    finetuned.experiment(config)
    folder = tmp_path / "runs" / "polis" / by
    summary = json.loads((folder / "summary.json").read_text())
    # The groups want opposite things, and only prompts that say the group can tell them apart.
    measure = "group_kl" if by == "group" else "log_loss"
    assert summary[f"group/{measure}"]["mean"] < summary[f"none/{measure}"]["mean"] - 0.05
    if by == "person":
        losses = [summary[f"{name}/log_loss"]["mean"] for name in finetuned.CONDITIONS]
        assert len(set(losses)) == 3  # earlier answers fit into these prompts
    finetuned.experiment(config)  # every division is only read
    assert json.loads((folder / "summary.json").read_text()) == summary
