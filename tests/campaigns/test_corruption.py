"""Every file of runs and projects damaged: the next command names it, or ends in the right bits."""

import dataclasses
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.exploration import config as exploration_config
from experiments.exploration import run as exploration_run
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import config as finetune_config
from shatter.cli.finetune import run as finetune_run
from shatter.cli.label import config as label_config
from shatter.cli.label import run as label_run
from tests.campaigns.snapshots import difference, snapshot
from tests.campaigns.tally import Tally, kind_of
from tests.campaigns.worker import command
from tests.strategies import SIZE

# numpy leaves a damaged archive open for python to close
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO")

Run = Callable[[Path], object]
"""The next command, on a folder."""


def _flipped(content: bytes) -> bytes | None:
    """One bit somewhere in the middle half."""
    if not content:
        return None
    rng = np.random.default_rng(len(content))
    at = len(content) // 4 + int(rng.integers(max(1, len(content) // 2)))
    changed = bytearray(content)
    changed[min(at, len(content) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit flipped": _flipped,
    "cut in half": lambda content: content[: len(content) // 2],
    "the last byte cut": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "deleted": lambda content: None,
    "null": lambda content: b"null\n",
    "[]": lambda content: b"[]\n",
    "binary": lambda content: bytes(range(256)),
}


def files_below(place: Path) -> list[Path]:
    """Files of a place, relative; locks are nobody's content."""
    found = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
    return [path for path in found if path.suffix != ".lock"]


def damage_all(
    tally: Tally,
    tmp_path: Path,
    begin: Path,
    run: Run,
    *,
    wanted: Callable[[Path], bool] = lambda file: True,
    outputs: Callable[[Path], bool] = lambda file: False,
    every: int = 1,
) -> None:
    """Damages every file in every way, each in a fresh copy, and gives the next command.

    Args:
      tally: what counts.
      tmp_path: where copies go.
      begin: the place whose files are damaged.
      run: the next command.
      wanted: the files to damage; all.
      outputs: those that the next command need not read: there an end without a traceback is right,
        whatever they then hold.
      every: one in so many is tried; fewer are left out with a larger `SIZE`.
    """
    place = tmp_path / "copy"

    def copy() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(begin, place)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")  # `own_cache` puts it back

    copy()
    run(place)
    expected = snapshot(place)
    cases = [(file, way) for file in filter(wanted, files_below(begin)) for way in DAMAGES]
    for file, way in cases[:: max(1, every // SIZE)]:
        copy()
        before = (place / file).read_bytes()
        after = DAMAGES[way](before)
        if after == before:
            continue
        if after is None:
            (place / file).unlink()
        else:
            (place / file).write_bytes(after)
        fault = _ends(run, place, file)
        if fault == "":
            other = difference(snapshot_or_bytes(place), expected)
            fault = None if other is None or outputs(file) else f"silently {other}"
        tally.add((str(file), way), fault)


def snapshot_or_bytes(place: Path) -> dict[str, Any]:
    """A snapshot, of a place whose files may still be damaged."""
    try:
        return snapshot(place)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        return {f"unreadable, {type(error).__name__}": None}


def _ends(run: Run, place: Path, file: Path) -> str | None:
    """`""` if the command went on; None if it named the file or a folder of it; else the fault."""
    try:
        run(place)
    except UsageError as error:
        names = [file.name, *(part for part in file.parts[1:] if len(part) > 3)]
        return None if any(name in str(error) for name in names) else "the file is not named"
    except Exception as error:
        return kind_of(error)
    return ""


@pytest.fixture
def tuning(model_folder: Path, files: Path) -> finetune_config.Config:
    return finetune_config.Config(
        model_name_or_path=str(model_folder),
        dataset_name=str(files / "pairs.jsonl"),
        eval_dataset_name=(str(files / "held.jsonl"),),
        mesh="data=1",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_length=16,
        max_steps=3,
        save_steps=1,
        save_total_limit=2,
        logging_steps=1,
        kl_samples=4,
        kl_batch_size=4,
        kl_length=4,
        max_completion_length=4,
        num_generations=0,
    )


def again(config: Any, experiment: Callable[[Any], None], field: str, name: str) -> Run:
    """The same command on a folder below a place."""
    return lambda place: experiment(dataclasses.replace(config, **{field: str(place / name)}))


@pytest.mark.slow
def test_a_finished_run(tuning: finetune_config.Config, tmp_path: Path, tally: Tally):
    """What is read again is checked; outputs are the user's, so they are left as they are."""
    tuning = dataclasses.replace(tuning, objective="reward_model", eval_dataset_name=())
    run = again(tuning, finetune_run.experiment, "output_dir", "run")
    begin = tmp_path / "begin"
    run(begin)
    read = [Path("run/config.json"), Path("run/summary.json")]
    some = [*read, Path("run/model/model.safetensors"), Path("run/metrics.jsonl")]
    damage_all(
        tally,
        tmp_path,
        begin,
        run,
        wanted=lambda file: SIZE > 1 or file in some or file.suffix == ".sha256",
        outputs=lambda file: file not in read,
    )
    tally.settle()


def as_flags(config: Any, **changes: Any) -> list[str]:
    """A config as flags."""
    found = []
    for field in dataclasses.fields(config):
        value = changes.get(field.name, getattr(config, field.name))
        if value != field.default:
            some = value if isinstance(value, tuple) else (value,)
            found += [f"--{field.name}", *map(str, some)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["reward_model", "ilhf"])
def test_an_unfinished_run(
    tuning: finetune_config.Config, tmp_path: Path, tally: Tally, objective: str
):
    """Killed before the results are written: two checkpoints, all metrics; the cached reference."""
    begin = tmp_path / "begin"
    begin.mkdir()
    tuning = dataclasses.replace(tuning, objective=objective)
    flags = as_flags(tuning, output_dir=str(begin / "run"))
    killed = command(begin, ["shatter.cli", "finetune", *flags], "metrics.csv")
    assert killed.returncode < 0, killed.stderr
    assert len(list((begin / "run" / "checkpoints").iterdir())) >= 2
    run = again(tuning, finetune_run.experiment, "output_dir", "run")
    of_cache = lambda file: (file.parts[0] == "cache") == (objective == "ilhf")
    damage_all(tally, tmp_path, begin, run, wanted=of_cache, every=3)
    tally.settle()


@pytest.fixture
def labelling(model_folder: Path, files: Path) -> label_config.ProposeConfig:
    return label_config.ProposeConfig(
        pool=str(files / "pool.jsonl"),
        eval_files=(str(files / "held.jsonl"),),
        model_name_or_path=str(model_folder),
        num_members=2,
        num_steps=2,
        batch_size=4,
        max_length=24,
        lora_r=2,
        num_queries=2,
        num_candidates=8,
    )


@pytest.mark.slow
def test_a_project_that_waits_for_answers(
    labelling: label_config.ProposeConfig, tmp_path: Path, tally: Tally
):
    run = again(labelling, label_run.experiment, "project", "project")
    run(tmp_path / "begin")
    damage_all(tally, tmp_path, tmp_path / "begin", run)
    tally.settle()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heads", "adapters"])
def test_a_project_that_learns(
    labelling: label_config.ProposeConfig, tmp_path: Path, tally: Tally, kind: str
):
    """After a round that was learned and another that is answered: the next command learns."""
    labelling = dataclasses.replace(labelling, ensemble=kind)
    begin = tmp_path / "begin"
    propose = again(labelling, label_run.experiment, "project", "project")
    learn = again(label_config.LearnConfig(), label_run.experiment, "project", "project")
    answer = ["shatter.cli", "label", "answer", f"--project={begin / 'project'}"]
    for number in range(2):
        propose(begin)
        done = command(begin, answer, keys="1\n" * 9)
        assert done.returncode == 0, done.stderr
        if number == 0:
            learn(begin)
    damage_all(tally, tmp_path, begin, learn, every=3)
    tally.settle()


@pytest.mark.slow
def test_an_unfinished_experiment(tmp_path: Path, tally: Tally):
    """Killed in the second arm, between two chunks."""
    config = exploration_config.Config(
        figure="arms",
        arms=("greedy", "infomax"),
        num_seeds=2,
        num_members=2,
        max_length=2,
        num_rounds=4,
        chunk_rounds=2,
    )
    begin = tmp_path / "begin"
    begin.mkdir()
    flags = as_flags(config, run_dir=str(begin / "run"))
    killed = command(begin, ["experiments.exploration.run", *flags], "metrics.csv")
    assert killed.returncode < 0, killed.stderr
    run = again(config, exploration_run.experiment, "run_dir", "run")
    damage_all(tally, tmp_path, begin, run, every=3)
    tally.settle()
