"""Only one process works on a folder, and its lock is given back however it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.locks import LOCK, alone, open_lock

HOLDER = """
import sys, time
from shatter.cli.common.locks import alone
with alone(sys.argv[1], "--run_dir"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_another_process_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "deep" / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"--run_dir: process {holder.pid} works on"):
            with run_folder.open_run_folder(str(folder), None):
                raise AssertionError("it was opened")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with alone(folder, "--run_dir"):
        assert (folder / LOCK).read_text() == f"{os.getpid()}\n"
    with alone(folder, "--run_dir"):  # given back by the end of the block
        pass


def test_a_lock_that_is_a_link_is_refused_and_its_target_left(tmp_path):
    target = tmp_path / "precious"
    target.write_text("ten years of work")
    (tmp_path / LOCK).symlink_to(target)
    with pytest.raises(UsageError, match=r"\.lock cannot be opened: is a symbolic link"):
        with alone(tmp_path, "--run_dir"):
            raise AssertionError("it was held")
    assert target.read_text() == "ten years of work"


def test_a_folder_that_cannot_be_made_and_a_lock_that_is_none_are_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out=.*file/run cannot be made: Not a directory"):
        with alone(tmp_path / "file" / "run", "--out"):
            raise AssertionError("it was held")
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UsageError, match=r"\.lock cannot be opened: Is a directory"):
        os.close(open_lock(tmp_path / LOCK))


def test_a_pipe_in_place_of_a_lock_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    began = time.monotonic()
    try:
        with alone(tmp_path, "--run_dir"):
            pass
    except (UsageError, OSError):
        pass
    assert time.monotonic() - began < 5
