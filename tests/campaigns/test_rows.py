"""Mutated rows and damaged files are read, or refused by file, line and field; none is lost."""

import gzip
import importlib.util
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shatter import data, models
from tests.campaigns.tally import Tally, fault_of, kind_of
from tests.strategies import SIZE, lines, mutated_rows, rows

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

HAS_TABLES = importlib.util.find_spec("pyarrow") is not None  # parquet tables can be read


def fault_of_lines(path: Path, content: list[bytes], tokenizer: models.Tokenizer) -> str | None:
    """Returns what goes wrong when the lines are read, encoded, written and read again, or None."""
    path.write_bytes(b"\n".join(content) + b"\n")
    try:
        found, report = data.read_rows(path, on_bad_row="skip")
    except data.RowsError as error:
        return None if str(path) in str(error) or "no good one" in str(error) else "no file named"
    numbers = {int(problem.source.rpartition(":")[2]) for problem in report.problems}
    if not all(problem.source.startswith(f"{path}:") for problem in report.problems):
        return "a bad row without its file and line"
    if report.read != len(content) or report.skipped != len(numbers):
        return "rows are not all counted"
    if {int(row.source.rpartition(":")[2]) for row in found} & numbers:
        return "a row is both bad and read"
    if numbers:
        try:
            data.read_rows(path)
            return "a bad row passes"
        except data.RowsError as error:
            if f"{path}:{min(numbers)}:" not in str(error):
                return "the first bad line is not named"
    again = path.with_name("again.jsonl")
    data.write_rows(again, found)
    if [row._replace(source="") for row in data.read_rows(again)[0]] != [
        row._replace(source="") for row in found
    ]:
        return "the rows are not the same after they were written and read again"
    try:
        encoded, _ = data.encode_rows(found, tokenizer, max_length=12, on_bad_row="skip")
    except data.RowsError as error:
        return None if f"{path}:" in str(error) else "encoding: no file and line named"
    for row in encoded:
        if row.length > 12 or not len(row.prompt) or not all(map(len, row.completions)):
            return "encoding: too long, or empty"
    return None


@pytest.mark.slow
def test_mutated_lines(model_folder: Path, tmp_path: Path, tally: Tally):
    tokenizer = models.load_tokenizer(model_folder)

    @settings(max_examples=150 * SIZE)
    @given(st.lists(lines(), min_size=1, max_size=6))
    def each(content: list[bytes]) -> None:
        try:
            fault = fault_of_lines(tmp_path / "rows.jsonl", content, tokenizer)
        except Exception as error:
            fault = kind_of(error)
        tally.add(content, fault)

    each()
    tally.settle()


def test_tables_hold_the_rows_of_json(tmp_path: Path, tally: Tally):
    """Nulls with which a table pads its structures are the same as absent fields in JSON."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    @settings(max_examples=60 * SIZE)
    @given(st.lists(rows() | mutated_rows(), min_size=1, max_size=4))
    def each(records: list[dict]) -> None:
        names = dict.fromkeys(name for row in records for name in row)
        try:
            padded = [{name: row.get(name) for name in names} for row in records]
            table = pyarrow.Table.from_pylist(padded)
            parquet.write_table(table, tmp_path / "rows.parquet")
        except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
            assume(False)  # a table cannot hold these rows
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
        found = []
        for name in ("rows.jsonl", "rows.parquet"):
            try:
                read, report = data.read_rows(tmp_path / name, on_bad_row="skip")
                bad = [problem.source.rpartition(":")[2] for problem in report.problems]
                found.append(([(*row[:6], row.votes) for row in read], bad))
            except data.RowsError:
                found.append(([], ["all"]))
            except Exception as error:
                tally.add(records, f"{name}: {kind_of(error)}")
                return
        fault = None if found[0] == found[1] else "a table's rows differ from those of JSON"
        tally.add(records, fault)

    each()
    tally.settle()


def damaged_files(folder: Path) -> list[Path]:
    """Makes damaged files, and folders, pipes and links, with the names of files of rows."""
    row = {"prompt": "a ", "chosen": "b", "rejected": "c"}
    text = b"".join(json.dumps({**row, "chosen": f"b{n}"}).encode() + b"\n" for n in range(9))
    packed = gzip.compress(text, mtime=0)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    made: dict[str, bytes] = {
        "empty.jsonl": b"",
        "blank.jsonl": b"\n \n\n",
        "utf16.jsonl": text.decode().encode("utf-16"),
        "binary.jsonl": bytes(range(256)) * 20,
        "nul.jsonl": b"\0" * 4096,
        "list.json": b"[" + text.replace(b"\n", b",")[:-1] + b"]",
        "deep.jsonl": b"[" * 200_000 + b"\n",
        "long.jsonl": b'{"prompt": "' + b"a" * 10**6 + b"\n",
        "digits.jsonl": b'{"prompt": "a", "completion": "b", "weight": ' + b"9" * 9999 + b"}\n",
        "plain.jsonl.gz": text,
        "empty.jsonl.gz": b"",
        "flipped.jsonl.gz": bytes(flipped),
        "tail.jsonl.gz": packed + b"more",
        "packed.jsonl": packed,
        "rows.csv": text,
        "no_ending": text,
        "text.parquet": text,
        "empty.parquet": b"",
        "magic.parquet": b"PAR1" + b"\0" * 64 + b"PAR1",
    }
    made |= {f"cut{n}.jsonl.gz": packed[:n] for n in (1, 5, 12, len(packed) // 2, len(packed) - 2)}
    if HAS_TABLES:
        import pyarrow
        import pyarrow.parquet

        table = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 9), table)
        whole = table.getvalue()
        made |= {f"cut{n}.parquet": whole[:n] for n in (4, 99, len(whole) // 2, len(whole) - 4)}
        for n in range(4, len(whole), max(1, len(whole) // (40 * SIZE))):
            flipped = bytearray(whole)
            flipped[n] ^= 0x55
            made[f"flip{n}.parquet"] = bytes(flipped)
    for name, content in made.items():
        (folder / name).write_bytes(content)
    for ending in ("jsonl", "jsonl.gz", "parquet"):
        (folder / f"folder.{ending}").mkdir()
        (folder / f"loop.{ending}").symlink_to(folder / f"loop.{ending}")
        (folder / f"gone.{ending}").symlink_to(folder / "nothing")
        os.mkfifo(folder / f"fifo.{ending}")
        (folder / f"locked.{ending}").write_bytes(text)
        (folder / f"locked.{ending}").chmod(0)
    return sorted(path for path in folder.iterdir() if HAS_TABLES or path.suffix != ".parquet")


def test_damaged_files(tmp_path: Path, tally: Tally):
    """A path that cannot be read is named in the error, with the reason."""
    (tmp_path / "rows").mkdir()
    for path in damaged_files(tmp_path / "rows"):
        for way in ("fail", "skip"):
            refusals = (ValueError, FileNotFoundError)
            read = lambda path=path, way=way: data.read_rows(path, on_bad_row=way)
            tally.add(path.name, fault_of(read, refusals=refusals, naming=(str(path), "no good")))
    tally.settle()
