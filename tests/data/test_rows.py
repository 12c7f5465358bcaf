import gzip
import itertools
import json

import pytest

from shatter.data import Report, Row, RowsError, read_rows, write_rows

USER, ANSWER, OTHER = (
    {"role": "user", "content": "Größe? 🦊"},
    {"role": "assistant", "content": "zwei Meter\r\n"},
    {"role": "assistant", "content": "2 m\u2028"},
)
# White space of many kinds, emoji, a combining accent, right to left, a byte order mark.
TEXTS = ["naïve", "e\u0301té \U0001f469\u200d\U0001f680", "a\nb", "a\r\nb", "\ttab ", "שלום"]
TEXTS += ["x\u2028y\u0085z\x0b", "\ufeffbom", "🦊"]


def write(path, *lines):
    """Writes lines: bytes as they are, everything else as JSON."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def read(tmp_path, *lines):
    rows, report = read_rows(write(tmp_path / "rows.jsonl", *lines))
    assert report.read == len(lines) and report.kept == len(rows) and not report.problems
    return [row._replace(source="") for row in rows]


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"prompt": "p", "chosen": " a", "rejected": " b"}, Row("p", (" a", " b"), (1, 2))),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, Row("", ("a", "b"), (1, 2))),
        (
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER], "annotator": 7},
            Row((USER,), ((ANSWER,), (OTHER,)), (1, 2), annotator="7"),
        ),
        ({"prompt": "p", "completion": "c", "extra": 1}, Row("p", ("c",), (0,))),
        ({"prompt": "p", "completion": "c", "label": None}, Row("p", ("c",), (0,))),
        ({"prompt": "p", "completion": "c", "label": True}, Row("p", ("c",), (1,))),
        ({"prompt": "p", "completion": "c", "label": False}, Row("p", ("c",), (2,))),
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, -1, 1], "group": "g"},
            Row("p", ("a", "b", "c"), (1, -1, 1), group="g"),
        ),
        (
            {"prompt": "p", "completions": ["a", "b", "c", "d"], "ratings": [2, 5.5, None, 2]},
            Row("p", ("a", "b", "c", "d"), (2, 1, -1, 2)),
        ),
        (
            {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1], "votes": [2, 3, 1]},
            Row("p", ("a", "b"), (1, 1), votes=(2.0, 3.0, 1.0)),
        ),
    ],
)
def test_layouts(tmp_path, record, row):
    assert read(tmp_path, record) == [row]


@pytest.mark.parametrize(
    ("completions", "votes", "expected"),
    [
        ("ab", [3, 1], [((1, 2), 3.0), ((2, 1), 1.0)]),
        ("ab", [3, 0], [((1, 2), 3.0)]),
        ("ab", [0, 2, 4], [((2, 1), 2.0), ((1, 1), 4.0)]),
        ("abc", [1, 0, 2], [((1, 2, 2), 1.0), ((2, 2, 1), 2.0)]),
        ("abc", [0, 0, 0, 5], [((1, 1, 1), 5.0)]),
    ],
)
def test_votes_become_one_weighted_row_an_answer(tmp_path, completions, votes, expected):
    record = {"prompt": "", "completions": list(completions), "votes": votes}
    rows, report = read_rows(write(tmp_path / "votes.jsonl", record))
    assert [(row.ranks, row.weight) for row in rows] == expected
    assert {row.votes for row in rows} == {tuple(map(float, votes))}
    assert (report.read, report.kept) == (1, len(expected))
    doubled, _ = read_rows(write(tmp_path / "votes.jsonl", record | {"weight": 2}))
    assert [row.weight for row in doubled] == [2 * weight for _, weight in expected]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is bright", "The sky is blue", "The sky is"),  # a word is not cut
        ("Q: why?\n\nA: x", "Q: why?\n\nA: y", "Q: why?\n\nA:"),
        ("Hi\n\nyes", "Hi\n\nno", "Hi"),  # all white space goes to the completions
        ("It is", "It is so", "It"),  # something is left of both
        ("It is", "It is ", "It"),
        ("It is \n", "It is so", "It"),
        ("It is so", "It is\nso", "It is"),
        ("blue", "blur", ""),
        ("So", "So what", ""),
        ("🦊 a", "🦊 b", "🦊"),
    ],
)
def test_implicit_prompt_of_texts(tmp_path, chosen, rejected, prompt):
    (row,) = read(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert row.prompt == prompt
    assert [row.prompt + completion for completion in row.completions] == [chosen, rejected]


def test_implicit_prompt_of_conversations(tmp_path):
    pair = {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}
    expected = [Row((USER,), ((ANSWER,), (OTHER,)), (1, 2))]
    assert read(tmp_path, pair) == expected
    # UltraFeedback has the prompt a second time, as a text.
    assert read(tmp_path, pair | {"prompt": USER["content"]}) == expected


def test_the_last_turn_alone_counts_where_no_prompt_says_otherwise(tmp_path):
    longer = {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER, USER, OTHER]}
    completions = ((ANSWER,), (ANSWER, USER, OTHER))
    (row,) = read(tmp_path, longer)
    assert row == Row((USER,), completions, (1, 2), last_turn=True)
    told = longer | {"prompt": USER["content"]}  # still cut out of the completions
    assert read(tmp_path, told, longer | {"last_turn": False}) == [
        row,
        row._replace(last_turn=False),
    ]
    explicit = {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER, USER, OTHER]}
    assert read(tmp_path, explicit, explicit | {"last_turn": True}) == [
        row._replace(last_turn=False),
        row,
    ]
    # If the last turn is the only one, `last_turn` makes no difference.
    short = {"chosen": [USER, ANSWER], "rejected": [USER, OTHER], "last_turn": True}
    assert not read(tmp_path, short, {"chosen": "a b", "rejected": "a c"})[0].last_turn


def test_implicit_prompts_are_counted(tmp_path):
    text = {"chosen": "a b", "rejected": "a c"}
    turns = {"chosen": [ANSWER], "rejected": [OTHER]}
    lines = [
        text,
        text | {"prompt": ""},
        turns | {"prompt": [USER]},
        {"chosen": [USER, ANSWER], "rejected": [USER, OTHER], "prompt": USER["content"]},
    ]
    assert read_rows(write(tmp_path / "a.jsonl", *lines))[1].implicit_prompts == 2


def some_rows():
    pairs = itertools.pairwise(TEXTS)
    return [
        *(Row(first, (second, "other"), (1, 2)) for first, second in pairs),
        Row("", ("a", "b"), (1, 2), annotator="ann", group="grün"),
        Row("p", ("a", "b"), (1, 2), weight=2.5),
        Row("p", ("a", "b"), (2, 1)),
        Row("p", ("a", "b"), (1, 2), weight=3.0, votes=(3.0, 1.0, 0.0)),
        Row("p", ("a", "b"), (1, 1)),
        Row("p", ("a", "b", "c"), (1, -1, 2), annotator="12"),
        Row("p", ("a",), (0,)),
        Row("p", ("a",), (2,), group="g"),
        Row((USER,), ((ANSWER,), (OTHER,)), (1, 2)),
        Row((USER,), ((ANSWER, USER, OTHER), (OTHER,)), (2, 2)),
        Row((), ((ANSWER,), (OTHER,)), (1, 2)),
        Row((USER,), ((ANSWER, USER, OTHER), (OTHER,)), (1, 2), last_turn=True),
        Row((USER,), ((ANSWER, USER, OTHER),), (0,), last_turn=True),
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "new/folder/rows.jsonl"])
def test_written_rows_are_read_back(tmp_path, name):
    rows = some_rows()
    write_rows(tmp_path / name, rows)
    back, report = read_rows(tmp_path / name)
    assert [row._replace(source="") for row in back] == rows
    assert [row.source for row in back] == [f"{tmp_path / name}:{n + 1}" for n in range(len(rows))]
    assert report == Report(read=len(rows), kept=len(rows))


def test_a_strict_pair_is_written_as_prompt_chosen_rejected(tmp_path):
    write_rows(tmp_path / "a.jsonl", [Row("p", ("a", "b"), (1, 2), group="g")])
    expected = {"prompt": "p", "chosen": "a", "rejected": "b", "group": "g"}
    assert json.loads((tmp_path / "a.jsonl").read_bytes()) == expected
    write_rows(tmp_path / "a.jsonl", [Row("p", ("a", "b"), (1, 1))])
    write_rows(tmp_path / "b.jsonl", [Row("é 🦊", ("a", "b"), (1, 2))])
    assert "é 🦊".encode() in (tmp_path / "b.jsonl").read_bytes()  # unescaped, for people to read
    expected = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1]}
    assert json.loads((tmp_path / "a.jsonl").read_bytes()) == expected


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    write_rows(path, some_rows()[:1])
    before = path.read_bytes()

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_rows(path, some_rows())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_byte_order_mark_windows_newlines_and_blank_lines(tmp_path):
    record = json.dumps({"prompt": "é 🦊", "completion": "a\r\nb"}, ensure_ascii=False).encode()
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + record + b"\r\n \r\n\r\n" + record)  # no newline at the end
    rows, report = read_rows(path)
    assert [(row.prompt, row.completions, row.source) for row in rows] == [
        ("é 🦊", ("a\r\nb",), f"{path}:1"),
        ("é 🦊", ("a\r\nb",), f"{path}:4"),
    ]
    assert report.read == 2


def test_a_table_reads_as_the_lines_do(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    records = [
        {"prompt": "p 🦊", "chosen": "a", "rejected": "b", "annotator": 3},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "r", "completions": ["a", "b", "c"], "ratings": [1.0, None, 2.0]},
        {"prompt": "s", "completion": "c", "label": False},
    ]
    table = pyarrow.Table.from_pylist(
        [{name: r.get(name) for name in {n for r in records for n in r}} for r in records]
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows, report = read_rows(tmp_path / "rows.parquet")
    assert [row._replace(source="") for row in rows] == read(tmp_path, *records)
    assert rows[2].source == f"{tmp_path / 'rows.parquet'}:3" and report.read == 4
    # Messages of a table have all fields, null where a message lacks one.
    talk = {"prompt": [USER | {"name": "x"}, USER], "chosen": [ANSWER], "rejected": [OTHER]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([talk]), tmp_path / "talk.parquet")
    (row,), _ = read_rows(tmp_path / "talk.parquet")
    assert row[:2] == ((USER | {"name": "x"}, USER), ((ANSWER,), (OTHER,)))
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"torn\.parquet: not a readable parquet table"):
        read_rows(tmp_path / "torn.parquet")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file of rows, found none at"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"rows\.csv: expected a name ending in \.jsonl, "):
        read_rows(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=r"rows\.parquet: expected a name ending in \.jsonl, "):
        write_rows(tmp_path / "rows.parquet", [])
    whole = gzip.compress(b'{"prompt": "", "completion": "c"}\n' * 99)
    for damaged in (whole[:-12], b"not gzip at all", whole[:20] + bytes(9) + whole[29:]):
        (tmp_path / "torn.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"torn\.jsonl\.gz: the gzip archive is damaged"):
            read_rows(tmp_path / "torn.jsonl.gz", on_bad_row="skip")
    for content in (b"", b"\n \r\n", b"\xef\xbb\xbf"):
        (tmp_path / "empty.jsonl").write_bytes(content)
        for on_bad_row in ("fail", "skip"):
            with pytest.raises(RowsError, match=r"empty\.jsonl: file: expected at least one row"):
                read_rows(tmp_path / "empty.jsonl", on_bad_row=on_bad_row)


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
BAD = [b"{torn", {"prompt": "p", "chosen": "a"}]


def test_fail_names_the_first_bad_row_and_counts_the_others(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, *BAD, GOOD)
    with pytest.raises(RowsError) as error:
        read_rows(path, bad_rows_path=tmp_path / "bad.jsonl")
    message = str(error.value)
    assert message.startswith(f"{path}:2: line: expected a whole JSON object, found str '{{torn'")
    assert "1 more rows are bad" in message and "on_bad_row='skip'" in message
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_skip_writes_the_bad_rows_with_their_reasons(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, *BAD, b"\xff\xfe", GOOD)
    rows, report = read_rows(path, on_bad_row="skip", bad_rows_path=tmp_path / "bad.jsonl")
    assert [row.source for row in rows] == [f"{path}:1", f"{path}:5"]
    assert (report.read, report.kept, report.skipped) == (5, 2, 3)
    written = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_bytes().splitlines()]
    assert written == [problem._asdict() for problem in report.problems]
    assert [entry["source"] for entry in written] == [f"{path}:{n}" for n in (2, 3, 4)]
    assert [entry["field"] for entry in written] == ["line", "rejected", "line"]
    assert json.loads(written[1]["text"]) == BAD[1]
    read_rows(write(path, GOOD), on_bad_row="skip", bad_rows_path=tmp_path / "bad.jsonl")
    assert (tmp_path / "bad.jsonl").read_bytes() == b""


def test_no_good_row_left_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", *BAD)
    with pytest.raises(RowsError, match=r"of 2 rows no good one is left; the first: .*a\.jsonl:1"):
        read_rows(path, on_bad_row="skip", bad_rows_path=tmp_path / "bad.jsonl")
    assert len((tmp_path / "bad.jsonl").read_bytes().splitlines()) == 2
    with pytest.raises(ValueError, match="on_bad_row expects 'fail' or 'skip', found 'ignore'"):
        read_rows(write(path, GOOD), on_bad_row="ignore")


def test_real_preferences(data_dir):
    rows, report = read_rows(data_dir / "hh_harmless" / "pairs.jsonl", on_bad_row="skip")
    assert report.read == 1614
    # Three answers in that file are a single space.
    assert [(p.field, p.found) for p in report.problems] == [("chosen", "str ' '")] * 3
    assert len(rows) == 1611 and {row.ranks for row in rows} == {(1, 2)}
