"""Cached arrays are made once; a broken cache costs time, not the run."""

import os

import numpy as np
import pytest

from shatter.cli.common.cache import cached_arrays


@pytest.fixture
def calls(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return []


def kept(calls):
    def make():
        calls.append(1)
        return {"log_probs": np.arange(3.0)}

    found = cached_arrays("reference/abc.npz", make)
    np.testing.assert_array_equal(found["log_probs"], [0.0, 1.0, 2.0])


def test_arrays_are_made_once(calls, tmp_path):
    kept(calls)
    kept(calls)
    assert len(calls) == 1
    assert (tmp_path / "cache" / "shatter" / "reference" / "abc.npz").exists()


def test_what_a_killed_process_had_half_written_goes_after_a_day(calls, tmp_path):
    folder = tmp_path / "cache" / "shatter" / "reference"
    folder.mkdir(parents=True)
    old, new = folder / ".a.npz.7-aabbccdd.tmp", folder / ".b.npz.7-aabbccdd.tmp"
    for file in (old, new):  # the new one may be another process's
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    kept(calls)
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_named_and_made_again(calls, tmp_path, caplog, content):
    kept(calls)
    file = tmp_path / "cache" / "shatter" / "reference" / "abc.npz"
    file.write_bytes(content)
    kept(calls)
    assert len(calls) == 2
    assert f"{file} is damaged" in caplog.text and "It is computed again" in caplog.text
    kept(calls)
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_said_with_its_variable(calls, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    kept(calls)
    kept(calls)
    assert len(calls) == 2
    assert "Not a directory" in caplog.text and "set XDG_CACHE_HOME to a folder" in caplog.text
