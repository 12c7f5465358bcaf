"""Writes that are whole or not at all, and the temporary files of processes that were killed."""

import os
import stat
import time

import pytest

from shatter.data.atomic import remove_unfinished, replacing, write_atomically


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """The second writes while the first has not finished; what stands is one of the two, whole."""
    path, sync = tmp_path / "a.jsonl", os.fsync
    seen = []

    def write_within(descriptor):
        seen.append(names(tmp_path))
        if len(seen) == 1:
            write_atomically(path, b"second\n")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", write_within)
    write_atomically(path, b"first\n")
    assert len(seen[1]) == 2 and len(set(seen[1])) == 2
    assert path.read_bytes() == b"first\n"
    assert names(tmp_path) == ["a.jsonl"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    write_atomically(path, b"old\n")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new\n")
    assert path.read_bytes() == b"old\n"
    assert names(tmp_path) == ["a.jsonl"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "a.npz"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["a.npz"]


def test_a_link_goes_on_pointing_to_the_file_that_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "a.json"
    link.symlink_to(tmp_path / "far" / "b.json")
    write_atomically(link, b"{}")
    assert link.is_symlink() and (tmp_path / "far" / "b.json").read_bytes() == b"{}"
    assert names(tmp_path / "far") == ["b.json"]


def test_long_names_and_ordinary_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / ("ä" * 120 + ".json"), b"{}")
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_only_temporary_files_are_removed_and_only_old_ones(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.json"):
        (left,) = names(tmp_path)  # the name that a killed process leaves
        raise KeyboardInterrupt
    own = ["thesis.tmp", ".draft.tmp", ".x.12-abc.tmp", "a.json"]
    for name in (left, *own):
        (tmp_path / name).write_text("half")
    remove_unfinished(tmp_path, age=3600.0)
    assert left in names(tmp_path)
    os.utime(tmp_path / left, (time.time() - 7200.0,) * 2)
    remove_unfinished(tmp_path, age=3600.0)
    assert names(tmp_path) == sorted(own)
