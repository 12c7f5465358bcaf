"""A single changed bit in a sealed file is found, and the file is named."""

import shutil
import subprocess

import pytest

from shatter.cli.common import checksums
from shatter.cli.common.binary import UsageError


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "7"
    (made / "state" / "d").mkdir(parents=True)
    (made / "state" / "d" / "weights").write_bytes(bytes(range(256)))
    (made / "empty").touch()
    (made / "loop.json").write_text("{}")
    checksums.seal(made)
    return made


def test_what_was_not_touched_passes(folder, tmp_path):
    checksums.verify(folder)
    file = tmp_path / "state.npz"
    file.write_bytes(b"abc")
    checksums.verify(file)  # never sealed
    checksums.seal(file)
    checksums.verify(file)
    assert checksums.is_sealed(file) and checksums.is_sealed(folder)


def test_every_bit_of_every_file_counts(folder):
    file = folder / "state" / "d" / "weights"
    whole = file.read_bytes()
    for place in (0, 100, 255):
        for bit in range(8):
            content = bytearray(whole)
            content[place] ^= 1 << bit
            file.write_bytes(bytes(content))
            with pytest.raises(UsageError, match=rf"{file} is damaged: its sha256 was"):
                checksums.verify(folder)
    file.write_bytes(whole)
    checksums.verify(folder)


def test_missing_and_foreign_files_are_named(folder):
    (folder / "loop.json").rename(folder / "other.json")
    with pytest.raises(UsageError, match=r"loop\.json is missing"):
        checksums.verify(folder)
    (folder / "loop.json").write_text("{}")
    with pytest.raises(UsageError, match=r"other\.json was not saved with the rest"):
        checksums.verify(folder)


@pytest.mark.parametrize("content", [b"\xff\x00", b"nonsense\n", b"{}"])
def test_damaged_checksums_are_named(folder, content):
    (folder / checksums.SUMS).write_bytes(content)
    with pytest.raises(UsageError, match=r"SHA256SUMS is damaged"):
        checksums.verify(folder)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the command sha256sum is absent")
def test_the_command_sha256sum_reads_them(folder, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("{}\n")
    checksums.seal(file)
    for place, sums in ((folder, checksums.SUMS), (tmp_path, "metrics.jsonl.sha256")):
        command = ["sha256sum", "--check", "--strict", sums]
        assert subprocess.run(command, cwd=place, capture_output=True).returncode == 0
