"""Two processes of 4 devices each make one run, whether or not one of them is killed."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from shatter import models
from shatter.cli.finetune.config import Config
from tests.cli.finetune.runs import finetune, history, pair, write

pytestmark = pytest.mark.slow  # processes of their own

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 120  # seconds


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(config: Config, log: Path, **flags: object) -> subprocess.Popen:
    """Starts `shatter finetune` with 4 devices in a process of its own."""
    fields = {name: value for name, value in vars(config).items() if value != getattr(Config, name)}
    fields |= flags
    (held,) = fields.pop("eval_dataset_name", [None])
    arguments = [f"--{name}" if v is True else f"--{name}={v}" for name, v in fields.items()]
    if held is not None:
        arguments += ["--eval_dataset_name", held]
    compilation = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    # Each device waits for the others in a thread of its own, of which there would be one a core.
    env = os.environ | {"XLA_FLAGS": compilation, "NPROC": "16", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        command = [sys.executable, "-m", "shatter.cli", "finetune", *arguments]
        return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)


def start_both(
    config: Config, folder: Path, name: str, **of_second: object
) -> list[subprocess.Popen]:
    meeting = {
        "multihost": True,
        "coordinator_address": f"127.0.0.1:{free_port()}",
        "num_processes": 2,
        "heartbeat_timeout": 10,
        "initialization_timeout": PATIENCE,
    }
    return [
        start(config, folder / f"{name}{n}.log", process_id=n, **meeting, **flags)
        for n, flags in enumerate(({}, of_second))
    ]


def wait_for(condition: Callable[[], bool], processes: list[subprocess.Popen]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + PATIENCE
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> Config:
    rows = [pair("ab "[: n % 4], "abcdefgh"[n % 8] * (1 + n % 5), "hg"[n % 2]) for n in range(24)]
    return Config(
        model_name_or_path=str(model_folder),
        dataset_name=write(tmp_path / "pairs.jsonl", rows),
        eval_dataset_name=(write(tmp_path / "held.jsonl", rows[:5]),),
        output_dir=str(tmp_path / "two"),
        objective="dpo",
        mesh="data=2,fsdp=2,tensor=2",
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=1e-3,
        max_steps=16,
        max_length=16,
        logging_steps=2,
        save_steps=4,
        kl_samples=4,
        kl_batch_size=4,
        kl_length=4,
        num_generations=0,
        seed=0,
    )


def test_two_processes_equal_one_and_a_killed_one_ends_the_other(config: Config, tmp_path: Path):
    """Both go on from the checkpoint to the numbers of one process that was never killed."""
    killed = start_both(config, tmp_path, "killed")
    started = [*killed]
    saved = Path(config.output_dir) / "checkpoints" / "4" / "SHA256SUMS"
    try:
        wait_for(saved.exists, killed)
        killed[1].send_signal(signal.SIGKILL)
        assert killed[0].wait(PATIENCE) != 0
        message = (tmp_path / "killed0.log").read_text()
        assert re.search("If a process ends early.*goes on from its newest checkpoint", message)
        assert "another task died" in message or "process 0: " in message
        assert not (Path(config.output_dir) / "summary.json").exists()
        resumed = start_both(config, tmp_path, "resumed")
        started += resumed
        assert [process.wait(PATIENCE) for process in resumed] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert "resumed after step" in (tmp_path / "resumed0.log").read_text()
    assert "before and after" not in (tmp_path / "resumed1.log").read_text()
    one = dataclasses.replace(config, output_dir=str(tmp_path / "one"))
    finetune(one)
    for a, b in zip(history(config), history(one), strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5, err_msg=name)
    params = [models.load_pretrained(Path(run.output_dir) / "model")[1] for run in (config, one)]
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in params]
    np.testing.assert_allclose(*flat, atol=1e-5)


def test_processes_with_other_files_end_together_and_write_nothing(config: Config, tmp_path: Path):
    other = write(tmp_path / "other.jsonl", [pair("a", "b", "c")])
    processes = start_both(config, tmp_path, "other", dataset_name=other)
    try:
        assert [process.wait(PATIENCE) for process in processes] == [1, 1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(tmp_path / f"other{n}.log").read_text() for n in (0, 1)]
    assert "error: process 0: process 1 failed: its own message says why" in logs[0]
    assert re.search(r"process 1 has other inputs than process 0 \(data: '\w+', and '\w+'", logs[1])
    assert not Path(config.output_dir).exists()


def test_a_coordinator_that_does_not_answer_is_waited_for_in_bounds(config: Config, tmp_path: Path):
    address = f"127.0.0.1:{free_port()}"
    meeting = {"multihost": True, "coordinator_address": address, "num_processes": 2}
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    waiting = {**meeting, "initialization_timeout": 2}
    for number, log in enumerate(logs):
        process = start(config, log, process_id=number, **waiting)
        assert process.wait(PATIENCE) == 1
        assert re.search(
            rf"error: process {number}: the processes did not meet within 2 s at the coordinator "
            rf"{address}, 2 of them expected: .*--initialization_timeout",
            log.read_text(),
        )
    assert not Path(config.output_dir).exists()
