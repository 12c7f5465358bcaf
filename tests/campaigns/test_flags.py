"""Every flag of both products times absurd values: refused by its name, or harmless."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.label_loop import config as loop_config
from experiments.label_loop import run as loop_run
from experiments.label_loop.raters import model_rater
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import checks as finetune_checks
from shatter.cli.finetune import config as finetune_config
from shatter.cli.finetune import run as finetune_run
from shatter.cli.label import config as label_config
from shatter.cli.label import run as label_run
from shatter.cli.label.inputs import read_inputs
from tests.campaigns.tally import Tally, fault_of
from tests.campaigns.worker import ROOT
from tests.strategies import absurd_flags

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# A flag is tried together with those without which nothing reads it.
COMPANIONS: dict[str, dict[str, Any]] = {
    "utility_scale": {"utility": "mean"},
    "beta": {"objective": "dpo"},
    "label_smoothing": {"objective": "dpo"},
    "delta": {"objective": "slic"},
    "kl_samples": {"kl_weight": 0.1},
    "kl_batch_size": {"kl_weight": 0.1},
    "kl_length": {"kl_weight": 0.1},
    "lora_r": {"use_peft": True},
    "lora_alpha": {"use_peft": True},
    "lora_target_modules": {"use_peft": True},
    "rater_model": {"rater": "model"},
}
NEVER_REACHED = ("logging_steps", "save_steps", "eval_steps", "save_total_limit", "max_steps")
"""A step that never comes may have any number, below the largest of 64 bits."""


def is_beyond(name: str, value: Any) -> bool:
    """Whether a number cannot be meant, or held by what computes with it."""
    values = value if isinstance(value, tuple) else (value,)
    for one in values:
        if isinstance(one, float) and abs(one) > 3e38:
            return True
        if isinstance(one, float) and one != one:
            return True
        if isinstance(one, int) and one >= (2**63 if name in NEVER_REACHED else 2**31):
            return True
    return False


def try_flag(tally: Tally, config: Any, check: Any, run: Any, name: str, value: Any) -> bool:
    """Counts one flag's value; true if it was accepted.

    Without a check of its own the command itself decides. With one, numbers beyond what can be held
    must not pass it, and are not run: they might take all memory.
    """
    accepted = []

    def call() -> None:
        if check is not None:
            check(config)
        if check is None or not is_beyond(name, value):
            run(config)
        accepted.append(True)

    texts = [value] if isinstance(value, str) and len(value) > 5 else []
    fault = fault_of(call, refusals=UsageError, naming=(f"--{name}", *texts))
    if fault is None and accepted and is_beyond(name, value):
        fault = "a number beyond what can be held is accepted"
    tally.add((type(config).__name__, name, _short(value)), fault)
    return fault is None and bool(accepted)


def _short(value: Any) -> Any:
    return value if len(repr(value)) < 80 else f"{value!r:.20}... ({len(repr(value))})"


@pytest.fixture
def tuning(model_folder: Path, files: Path, tmp_path: Path) -> finetune_config.Config:
    return finetune_config.Config(
        model_name_or_path=str(model_folder),
        dataset_name=str(files / "pairs.jsonl"),
        output_dir=str(tmp_path / "run"),
        mesh="data=1",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_length=16,
        max_steps=1,
        kl_samples=4,
        kl_batch_size=4,
        kl_length=4,
        max_completion_length=4,
        num_generations=1,
    )


@pytest.fixture
def labelling(model_folder: Path, files: Path, tmp_path: Path) -> label_config.ProposeConfig:
    return label_config.ProposeConfig(
        project=str(tmp_path / "project"),
        pool=str(files / "pairs.jsonl"),
        model_name_or_path=str(model_folder),
        num_members=2,
        num_steps=1,
        batch_size=4,
        max_length=16,
        max_completion_length=4,
        num_queries=2,
        num_candidates=8,
    )


@pytest.fixture
def looping(labelling: label_config.ProposeConfig) -> loop_config.Config:
    fields = {f.name: getattr(labelling, f.name) for f in dataclasses.fields(labelling)}
    return loop_config.Config(**fields, num_rounds=1)


def test_flags_of_finetune(tuning: finetune_config.Config, tally: Tally):
    """By the check and the dry run, which together are all that comes before the expensive part."""
    for name, value in absurd_flags(tuning):
        config = dataclasses.replace(
            tuning, **{**COMPANIONS.get(name, {}), "dry_run": True, name: value}
        )
        try_flag(tally, config, finetune_checks.check, finetune_run.experiment, name, value)
    tally.settle()


def test_flags_of_label(labelling: label_config.ProposeConfig, tally: Tally):
    """By the check and the function that opens the model and the pool."""
    for name, value in absurd_flags(labelling):
        config = dataclasses.replace(labelling, **{name: value})
        if name.startswith("lora") or name in ("adapted_layers", "utility_scale"):
            config = dataclasses.replace(config, ensemble="adapters")
        try_flag(tally, config, label_config.check, read_inputs, name, value)
    tally.settle()


def test_flags_of_label_loop(looping: loop_config.Config, model_folder: Path, tally: Tally):
    """The flags that it adds, by the check and the functions that open the models and the pool."""

    def open_all(config: loop_config.Config) -> None:
        read_inputs(config)
        if config.rater == "model":
            model_rater(config, None)

    known = {field.name for field in dataclasses.fields(label_config.ProposeConfig)}
    rater = {"rater_model": str(model_folder)}
    for name, value in absurd_flags(looping):
        if name not in known:
            config = dataclasses.replace(
                looping, **{**rater, **COMPANIONS.get(name, {}), name: value}
            )
            try_flag(tally, config, loop_config.check, open_all, name, value)
    tally.settle()


@pytest.mark.slow
def test_flags_of_the_other_subcommands(
    labelling: label_config.ProposeConfig, tmp_path: Path, tally: Tally
):
    """Of answer, learn, import and export, on a project that has queries and no answer."""
    label_run.experiment(labelling)
    project = labelling.project
    calls = (
        label_config.LearnConfig(project=project),
        label_config.ImportConfig(project=project, file=labelling.pool),
        label_config.ExportConfig(project=project, answers=str(tmp_path / "answers.jsonl")),
    )
    for given in calls:
        for name, value in absurd_flags(given):
            config = dataclasses.replace(given, **{name: value})
            (tmp_path / "answers.jsonl").unlink(missing_ok=True)  # which no export writes over
            try_flag(tally, config, None, label_run.experiment, name, value)
    tally.settle()


@pytest.mark.slow
def test_accepted_flags_of_finetune_run_to_their_end(
    tuning: finetune_config.Config, tmp_path: Path, tally: Tally
):
    """What check and dry run let pass trains a step and is saved, or is refused by name."""
    for number, (name, value) in enumerate(absurd_flags(tuning)):
        own = {"output_dir": str(tmp_path / f"run{number}"), **COMPANIONS.get(name, {})}
        config = dataclasses.replace(tuning, **{**own, name: value})
        dry = dataclasses.replace(config, dry_run=True)
        passed = Tally("", lambda name, value: None)
        if try_flag(passed, dry, finetune_checks.check, finetune_run.experiment, name, value):
            if name == "max_steps" or (name == "num_train_epochs" and value > 1e3):
                continue  # it is meant as it is said, and takes for ever
            try_flag(tally, config, finetune_checks.check, finetune_run.experiment, name, value)
    tally.settle()


@pytest.mark.slow
def test_accepted_flags_of_label_run_to_their_end(
    looping: loop_config.Config, tmp_path: Path, tally: Tally
):
    """What the check lets pass goes through a round of propose, answer and learn, or is refused."""
    for number, (name, value) in enumerate(absurd_flags(looping)):
        own = {"project": str(tmp_path / f"project{number}"), name: value}
        config = dataclasses.replace(looping, **own)
        if is_beyond(name, value) or name == "num_rounds":
            continue
        try_flag(tally, config, loop_config.check, loop_run.experiment, name, value)
    tally.settle()


@pytest.mark.slow
@pytest.mark.parametrize("product", ["finetune", "label"])
def test_command_lines(product: str, model_folder: Path, files: Path, tmp_path: Path, tally: Tally):
    """Through the shell: the flag is named, and there is no traceback."""
    head = {
        "finetune": [f"--dataset_name={files / 'pairs.jsonl'}"],
        "label": ["propose", f"--pool={files / 'pool.jsonl'}"],
    }[product]
    for flag in (
        "--seed=99999999999999999999",
        "--learning_rate=nan",
        "--max_length=1e9",
        "--no_such_flag=1",
        "--model_name_or_path=",
        b"--model_name_or_path=\xff\xfe",
        "--chat_template=/",
        f"--data_dir={tmp_path / 'none'}",
    ):
        name = os.fsdecode(flag).partition("=")[0]
        is_model = name == "--model_name_or_path"
        model = [] if is_model else [f"--model_name_or_path={model_folder}"]
        child = subprocess.run(
            [sys.executable, "-m", "shatter.cli", product, *head, *model, flag],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "SHATTER_DATA_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        said = child.stderr.decode(errors="replace")
        fault = None
        if "Traceback" in said:
            fault = f"a traceback: {said.strip().splitlines()[-1][:80]}"
        elif child.returncode not in (1, 2) or name[2:] not in said.replace("-", "_"):
            fault = f"status {child.returncode}, the flag is not named"
        tally.add(flag, fault)
    tally.settle()
