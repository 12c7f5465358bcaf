"""Flags come from a dataclass, and errors that a user can fix have no traceback."""

import dataclasses
import subprocess
import sys

import pytest

from shatter.cli.common import binary

PROGRAM = """
import dataclasses
from shatter.cli.common import binary

@dataclasses.dataclass(frozen=True)
class Config:
    num_seeds: int = 3
    arms: tuple[str, ...] = ()

def experiment(config):
    binary.choose("arm", config.arms, ("greedy", "infomax"))
    binary.at_least(config, num_seeds=1)
    if config.num_seeds == 13:
        raise OSError(28, "No space left on device", "metrics.npz")
    if config.num_seeds == 14:
        try:
            raise ValueError("UNAVAILABLE: writing 'c/0': No space left on device [source='x.cc']")
        except ValueError as error:
            raise RuntimeError("the checkpoint could not be saved") from error
    if config.num_seeds == 15:
        open("/dev/null/config.json")
    if config.num_seeds == 16:
        raise KeyboardInterrupt
    if config.num_seeds == 17:
        raise ValueError("a fault of ours")
    if config.num_seeds == 18:
        raise binary.UsageError("[/INST] half \\ud83d")
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


@pytest.mark.slow
def test_a_full_disk_has_no_traceback():
    done = run("--num_seeds=13")
    assert done.returncode == 1
    assert done.stderr == (
        "error: No space left on device (metrics.npz): what was saved before is whole; free some "
        "space and give the same command again\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (14, "No space left on device (a file of the run): what was saved before is whole; "),
        (15, "Not a directory: /dev/null/config.json\n"),
        (16, "interrupted: what was saved before is whole; the same command goes on\n"),
        (18, "[/INST] half \\ud83d\n"),
    ],
)
def test_what_the_system_refuses_and_the_user_interrupts_has_no_traceback(number, said):
    done = run(f"--num_seeds={number}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {said}"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_fault_of_ours_has_a_traceback():
    done = run("--num_seeds=17")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


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


def test_whole_numbers_fit_an_int32_and_real_ones_a_float32():
    binary.at_least(Rates(0.1, num_seeds=2**31 - 1), num_seeds=1)
    with pytest.raises(binary.UsageError, match=r"--num_seeds must be at most 2147483647, found"):
        binary.at_least(Rates(0.1, num_seeds=2**31), num_seeds=1)
    for bad, expected in (
        (float("inf"), "at most 1000000000.0"),
        (1e30, "at most"),
        (1e-60, "at least"),
    ):
        with pytest.raises(binary.UsageError, match=rf"--learning_rate must be {expected}"):
            binary.positive(Rates(bad), "learning_rate")


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "expected"),
    [
        (binary.whole(1, other=(-1,)), (-1, 1, 9), (0, -2, 2**31), "-1 or at "),
        (binary.whole(1, other=(None,)), (None, 1), (0,), "at least 1"),
        (binary.real(0, 0.5, below=True), (0, 0.49), (0.5, -0.1, float("nan")), r"in \[0, 0.5\)"),
        (binary.real(0, 1), (0, 0.0, 1.0), (1.1,), r"in \[0, 1\]"),
    ],
)
def test_ranges(bounds, good, bad, expected):
    @dataclasses.dataclass(frozen=True)
    class One:
        flag: object

    for value in good:
        binary.check_ranges(One(value), {"flag": bounds, "no_such_flag": bounds})
    for value in bad:
        with pytest.raises(binary.UsageError, match=rf"--flag must be {expected}"):
            binary.check_ranges(One(value), {"flag": bounds})


@dataclasses.dataclass(frozen=True)
class Texts:
    pool: str = "rows.jsonl"
    eval_files: tuple[str, ...] = ()
    chat_template: str | None = None
    num_seeds: int = 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            Texts(pool="a/" + "b" * 256),
            "--pool must be names of at most 255 bytes, found 256 bytes",
        ),
        (Texts(pool="a/" * 3000), "--pool must be names of at most 255 bytes"),
        (Texts(eval_files=("fine", "a\0b")), r"--eval_files must be text .*, found '\\x00'"),
        (Texts(chat_template="\ud83d"), r"--chat_template must be text .*, found '\\ud83d'"),
    ],
)
def test_texts_that_name_no_file_are_refused(config, said):
    with pytest.raises(binary.UsageError, match=said):
        binary.check_texts(config)


def test_texts_that_name_files_pass():
    binary.check_texts(Texts(pool="Ordner/größte Datei [1].jsonl", eval_files=("b" * 255,)))
