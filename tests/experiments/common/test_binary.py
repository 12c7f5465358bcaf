"""Flags from a dataclass, and errors that a user can mend."""

import dataclasses
import subprocess
import sys

import pytest

from experiments.common import binary

PROGRAM = """
import dataclasses
from experiments.common import binary

@dataclasses.dataclass(frozen=True)
class Config:
    num_seeds: int = 3
    arms: tuple[str, ...] = ()

def experiment(config):
    binary.choose("arm", config.arms, ("greedy", "infomax"))
    binary.at_least(config, num_seeds=1)
    if config.num_seeds == 13:
        raise OSError(28, "No space left on device", "metrics.npz")
    print(config)

binary.main(Config, experiment)
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )


def test_flags_are_the_fields():
    done = run("--num_seeds=7", "--arms", "greedy")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Config(num_seeds=7, arms=('greedy',))\n"


def test_a_usage_error_has_no_traceback():
    done = run("--arms", "greedy", "lucky")
    assert done.returncode == 1
    assert done.stderr == "error: unknown arm 'lucky'; the known ones are: greedy, infomax\n"


def test_a_full_disk_has_no_traceback():
    done = run("--num_seeds=13")
    assert done.returncode == 1
    assert done.stderr == (
        "error: No space left on device (metrics.npz): what was saved before is whole; free some "
        "space and give the same command again\n"
    )


def test_an_unknown_flag_is_refused():
    done = run("--num_sedes=7")
    assert done.returncode != 0
    assert "num_sedes" in done.stderr


@dataclasses.dataclass(frozen=True)
class Rates:
    learning_rate: float
    num_seeds: int = 1


def test_bounds():
    with pytest.raises(binary.UsageError, match=r"--num_seeds must be at least 2, found 1"):
        binary.at_least(Rates(0.1), num_seeds=2)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(binary.UsageError, match=r"--learning_rate must be positive"):
            binary.positive(Rates(bad), "learning_rate")
    binary.positive(Rates(0.1), "learning_rate")


def test_every_number_of_a_tuple_must_be_positive():
    @dataclasses.dataclass(frozen=True)
    class Betas:
        betas: tuple[float, ...]

    binary.positive(Betas((1.0, 0.5)), "betas")
    for bad in ((), (1.0, 0.0), (float("nan"),)):
        with pytest.raises(binary.UsageError, match=r"--betas must be positive, found \("):
            binary.positive(Betas(bad), "betas")
