"""Kills at file events over a whole life: the same command goes on, and ends in the same bits.

`SHATTER_CAMPAIGN_KILLS` is the number of kills of each life; 0 = at every event.
"""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.campaigns.snapshots import difference, snapshot
from tests.campaigns.tally import Tally
from tests.campaigns.worker import command

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SHATTER_CAMPAIGN_KILLS", "3"))


def points(num_events: int) -> list[int]:
    """Events to kill at, spread over all of them; always the same."""
    if not KILLS or num_events <= KILLS:
        return list(range(1, num_events + 1))
    draw = random.Random(0)
    edges = [1 + n * num_events // KILLS for n in range(KILLS + 1)]
    return [draw.randrange(low, high) for low, high in pairwise(edges)]


def kill_all(
    tally: Tally,
    tmp_path: Path,
    arguments: Callable[[Path], Sequence[str]],
    *,
    begin: Path | None = None,
    keys: str = "",
) -> Path:
    """Kills a command at points over its life, each from the same begin, and gives it again.

    Args:
      tally: what counts.
      tmp_path: where the folders go.
      arguments: the module and its flags, of a folder for what it writes.
      begin: what is in that folder before; None = nothing.
      keys: what a person types.

    Returns:
      The folder of the run that was not killed.
    """

    def fresh(name: str) -> Path:
        place = tmp_path / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(begin, place) if begin else place.mkdir()
        return place

    name = re.sub(r"\W+", "_", " ".join(arguments(Path())[:3]))
    whole = fresh(f"{name}-whole")
    done = command(whole, arguments(whole), 0, keys)
    assert done.returncode == 0, done.stderr
    expected = snapshot(whole)
    num_events = int(Path(f"{whole}.events").read_text())
    for point in points(num_events):
        place = fresh(f"{name}-killed")
        killed = command(place, arguments(place), point, keys)
        assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
        confirmed = _answers(place)
        resumed = command(place, arguments(place), None, keys)
        fault = None
        if resumed.returncode:
            said = resumed.stderr.strip().splitlines()
            kind = "a traceback" if "Traceback" in resumed.stderr else "status 1"
            fault = f"the same command ends with {kind}: {(said or [''])[-1][:200]}"
        elif not set(confirmed) <= set(_answers(place)):
            fault = "a confirmed answer is lost"
        else:
            fault = difference(snapshot(place), expected)
        tally.add((name, f"event {point} of {num_events}"), fault)
    return whole


def _answers(place: Path) -> list[str]:
    """The event ids of confirmed answers."""
    lines = [
        line
        for file in place.rglob("answers.jsonl")
        for line in file.read_text().split("\n")[:-1]
        if "event_id" in line
    ]
    return [json.loads(line)["event_id"] for line in lines]


@pytest.mark.parametrize(
    "changes",
    [(), ("--use_peft", "--kl_weight=0.1"), ("--objective=reward_model", "--save_total_limit=2")],
    ids=["ilhf", "adapters", "reward_model"],
)
def test_lives_of_finetune(
    model_folder: Path, files: Path, tmp_path: Path, tally: Tally, changes: tuple[str, ...]
):
    flags = [
        f"--model_name_or_path={model_folder}",
        f"--dataset_name={files / 'pairs.jsonl'}",
        f"--eval_dataset_name={files / 'held.jsonl'}",
        "--per_device_train_batch_size=4",
        "--per_device_eval_batch_size=4",
        "--mesh=data=1",
        "--max_steps=3",
        "--save_steps=1",
        "--logging_steps=1",
        "--max_length=16",
        "--kl_samples=4",
        "--kl_batch_size=4",
        "--kl_length=4",
        "--num_generations=1",
        "--max_completion_length=4",
        *changes,
    ]
    kill_all(
        tally,
        tmp_path,
        lambda place: ["shatter.cli", "finetune", f"--output_dir={place / 'run'}", *flags],
    )
    tally.settle()


LABEL = ("--num_members=2", "--num_steps=2", "--batch_size=4", "--max_length=24", "--lora_r=2")


def test_the_life_of_a_project(model_folder: Path, files: Path, tmp_path: Path, tally: Tally):
    """Propose, answer, learn, export: each killed, from what the one before has left."""
    label, model = ("shatter.cli", "label"), f"--model_name_or_path={model_folder}"
    about = [f"--pool={files / 'pool.jsonl'}", f"--eval_files={files / 'held.jsonl'}", model]
    flags = [*about, "--ensemble=adapters", "--num_queries=3", "--num_candidates=8", *LABEL]
    at = lambda place: f"--project={place / 'project'}"
    proposed = kill_all(tally, tmp_path, lambda place: [*label, "propose", at(place), *flags])
    answered = kill_all(
        tally,
        tmp_path,
        lambda place: [*label, "answer", at(place)],
        begin=proposed,
        keys="1\n1\n1\n",
    )
    learned = kill_all(tally, tmp_path, lambda place: [*label, "learn", at(place)], begin=answered)
    kill_all(
        tally,
        tmp_path,
        lambda place: [*label, "export", at(place), f"--model={place / 'model'}"],
        begin=learned,
    )
    kill_all(
        tally,
        tmp_path,
        lambda place: [
            *(*label, "import", at(place)),
            f"--file={files / 'pairs.jsonl'}",
        ],
        begin=learned,
    )
    tally.settle()


def test_the_life_of_a_loop(model_folder: Path, files: Path, tmp_path: Path, tally: Tally):
    flags = [f"--pool={files / 'pairs.jsonl'}", f"--model_name_or_path={model_folder}", *LABEL]
    flags += ["--num_queries=2", "--num_candidates=8", "--num_rounds=2", "--num_seeds=2"]
    kill_all(
        tally,
        tmp_path,
        lambda place: ["experiments.label_loop.run", f"--project={place / 'project'}", *flags],
    )
    tally.settle()


def test_the_life_of_an_experiment(tmp_path: Path, tally: Tally):
    flags = ["--figure=arms", "--arms", "greedy", "infomax", "--num_seeds=2", "--num_members=2"]
    flags += ["--max_length=2", "--num_rounds=4", "--chunk_rounds=2"]
    kill_all(
        tally,
        tmp_path,
        lambda place: ["experiments.exploration.run", f"--run_dir={place / 'run'}", *flags],
    )
    tally.settle()
