"""Files that cannot be read, tables that fill up their structures, and files that are written."""

import gzip
import json
import os
import random
import stat

import pytest

from shatter.data import read_rows, write_rows
from shatter.data.files import records
from shatter.data.rows import Row

ROW = {"prompt": "p", "chosen": " a", "rejected": " b"}
LINE = json.dumps(ROW).encode() + b"\n"


def table(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_what_is_no_file_is_refused_and_nothing_waits(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    (tmp_path / "circle.jsonl").symlink_to(tmp_path / "circle.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "file.jsonl").write_bytes(LINE)
    for name, found in {
        "folder.jsonl": "found a folder",
        "pipe.jsonl": "found a pipe or a device",
        "zero.jsonl": "found a pipe or a device",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}: expected a file of rows, {found}"):
            read_rows(tmp_path / name)
    missing = ["dangling.jsonl", "circle.jsonl", "file.jsonl/a.jsonl", "a" * 300 + ".jsonl"]
    for name in [*missing, "a\0b.jsonl"]:
        with pytest.raises(FileNotFoundError, match="expected a file of rows, found none at"):
            read_rows(tmp_path / name)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "secret.jsonl"
    path.write_bytes(LINE)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(ValueError, match=r"secret\.jsonl: cannot be read: Permission denied"):
        read_rows(path)


def test_a_disk_that_fails_while_reading_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.open", fail)
    with pytest.raises(ValueError, match=r"a\.jsonl: cannot be read: Input/output error"):
        read_rows(path)


def test_one_flipped_bit_in_a_table_or_archive_never_ends_in_a_traceback(tmp_path):
    whole = {
        "a.parquet": table(tmp_path / "a.parquet", [ROW] * 3).read_bytes(),
        "a.jsonl.gz": gzip.compress(LINE * 9),
    }
    rng = random.Random(3)
    for name, content in whole.items():
        for _ in range(150):
            torn = bytearray(content)
            torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
            (tmp_path / name).write_bytes(torn if rng.random() < 0.8 else torn[: len(torn) // 2])
            try:
                read_rows(tmp_path / name, on_bad_row="skip")
            except ValueError as error:
                assert name in str(error)


def test_a_table_of_another_kind_of_text_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    for content in (b"", b"PAR1", LINE, bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.parquet: not a readable parquet table: "):
            read_rows(path)


def call(name, **arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{name: arguments}]}


def test_the_padding_of_a_table_is_absent_as_it_is_in_json(tmp_path):
    """At every depth; the nulls of a list stay."""
    rows = [
        {"prompt": [call("look", where={"city": "Rome", "at": [1, 2]})], "ratings": [1.0, None]},
        {"prompt": [call("look", where={"zone": {"name": "UTC"}}), call("wait", hours=2)]},
        {"prompt": [call("look", where={})], "ratings": None},
    ]
    found = [row for _, row in records(table(tmp_path / "a.parquet", rows))]
    assert found == [rows[0], rows[1], {"prompt": rows[2]["prompt"]}]


def test_a_map_of_a_table_is_an_object(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    kind = pyarrow.struct({"arguments": pyarrow.map_(pyarrow.string(), pyarrow.string())})
    column = pyarrow.array([{"arguments": [("city", "Rome"), ("day", "1")]}], kind)
    pyarrow.parquet.write_table(pyarrow.table({"call": column}), tmp_path / "a.parquet")
    found = [row for _, row in records(tmp_path / "a.parquet")]
    assert found == [{"call": {"arguments": {"city": "Rome", "day": "1"}}}]


def test_written_files_have_ordinary_permissions_and_long_names(tmp_path):
    mask = os.umask(0)
    os.umask(mask)
    for name in ("a.jsonl", "ä" * 120 + ".jsonl.gz"):
        write_rows(tmp_path / name, [Row("p", ("a", "b"), (1, 2))])
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
        assert len(read_rows(tmp_path / name)[0]) == 1
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_number_is_written_that_json_does_not_have(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / "a.jsonl", [Row("p", ("a", "b"), (1, 2), weight=number)])
    assert not list(tmp_path.iterdir())
    # A table may hold such numbers where nobody looks; a bad row is shown with them.
    path = table(tmp_path / "a.parquet", [{"prompt": "p", "score": number}])
    with pytest.raises(ValueError, match=r"a\.parquet:1: row: expected one layout"):
        read_rows(path)
