"""Conversations with tool calls, texts that are refused, and arbitrary lines."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shatter.data import Row, RowsError, read_rows, write_rows
from shatter.data.texts import MAX_DEPTH, text_key

USER = {"role": "user", "content": "How warm is it?"}
TOOL = {"role": "tool", "content": "17"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": None}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "assistant", "content": "Warm."}
OTHER = {"role": "assistant", "content": "Cold."}


def read(tmp_path, *records):
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    return read_rows(tmp_path / "a.jsonl")[0]


def without_content(message):
    return {name: value for name, value in message.items() if name != "content"}


@pytest.mark.parametrize("calling", [CALLING, without_content(CALLING)])
def test_a_call_of_a_tool_needs_no_content(tmp_path, calling):
    """Null is the same as absent: in prompts, as completions and between turns."""
    pair = {"prompt": [USER, calling, TOOL], "chosen": [ANSWER], "rejected": [OTHER]}
    alone = {"prompt": [USER], "completion": [calling], "label": True}
    among = {"chosen": [USER, calling, TOOL, ANSWER], "rejected": [USER, OTHER]}
    rows = read(tmp_path, pair, alone, among)
    assert rows[0].prompt == (USER, CALLING, TOOL)
    assert rows[1].completions == ((CALLING,),)
    assert rows[2].completions == ((CALLING, TOOL, ANSWER), (OTHER,))
    write_rows(tmp_path / "b.jsonl", rows)
    assert [row._replace(source="") for row in read_rows(tmp_path / "b.jsonl")[0]] == [
        row._replace(source="") for row in rows
    ]


def test_other_nulls_of_a_message_are_left_out(tmp_path):
    (row,) = read(tmp_path, {"prompt": [USER | {"name": None}], "completion": [ANSWER]})
    assert row.prompt == (USER,)
    (row,) = read(tmp_path, {"prompt": [USER], "completion": [CALLING | {"content": "Wait."}]})
    assert row.completions == (({"content": "Wait."} | CALLING | {"content": "Wait."},),)


HALF = "\ud83d"
ROW = {"prompt": [USER], "completion": [ANSWER]}


def calling(arguments):
    call = {"name": "weather", "arguments": arguments}
    return ROW | {"completion": [{"role": "assistant", "tool_calls": [call]}]}


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (ROW | {"prompt": [USER | {"content": None}]}, r"prompt\[0\].content: expected a text, .*"),
        (
            ROW | {"prompt": [without_content(USER)]},
            "found NoneType None; only an assistant's message with tool_calls may lack it",
        ),
        (
            ROW | {"completion": [ANSWER | {"content": None}]},
            r"completion\[0\].content: .*NoneType",
        ),
        (ROW | {"completion": [CALLING | {"tool_calls": []}]}, r"content: expected a text"),
        (ROW | {"completion": [CALLING | {"tool_calls": "f()"}]}, "tool_calls: expected a list"),
        (ROW | {"completion": [CALLING | {"tool_calls": ["f"]}]}, "tool_calls: expected a list"),
        (ROW | {"completion": [CALLING | {"content": 3}]}, "content: expected a text or null"),
        # half a surrogate pair, in all places of a text
        (
            ROW | {"prompt": [USER | {"content": HALF}]},
            r"prompt\[0\].content: expected text that U",
        ),
        (ROW | {"prompt": [USER | {"name": HALF}]}, r"prompt\[0\].name: expected text that UTF-8"),
        (ROW | {"prompt": [USER | {HALF: "x"}]}, r"prompt\[0\]: expected text that UTF-8"),
        (ROW | {"prompt": [USER | {"role": HALF}]}, r"prompt\[0\].role: expected one of"),
        (ROW | {"annotator": HALF}, "annotator: expected text that UTF-8 can hold"),
        (ROW | {"group": f"a{HALF}"}, "group: .* half a surrogate pair at character 1"),
        (ROW | {"label": HALF}, "label: expected true or false"),
        (calling({"city": HALF}), r"tool_calls\[0\].arguments.city: expected text that UTF-8"),
        (calling({HALF: 1}), r"tool_calls\[0\].arguments: expected text that UTF-8"),
        (calling(f'{{"city": "{HALF}"}}'), r"tool_calls\[0\].arguments: expected text that UTF-8"),
        ({"prompt": HALF, "completion": "a"}, "prompt: expected text that UTF-8"),
        # numbers and nesting
        (calling({"days": float("nan")}), r"arguments.days: expected a finite number, found float"),
        (calling({"days": [1, float("-inf")]}), r"arguments.days\[1\]: expected a finite number"),
        (calling(nested(MAX_DEPTH + 1)), f"expected at most {MAX_DEPTH} levels of nesting"),
        (ROW | {"prompt": nested(300)}, r"prompt\[0\]: expected a message"),
        (ROW | {"last_turn": "yes"}, "last_turn: expected true or false, found str 'yes'"),
    ],
)
def test_what_no_text_may_hold_is_named(tmp_path, record, message):
    with pytest.raises(RowsError, match=rf"a\.jsonl:2: .*{message}"):
        read(tmp_path, ROW, record)


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": ' + b"[" * 100000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b', "completion": "a"}',
        b'{"prompt": "p", "completion": "a", "weight": ' + b"9" * 5000 + b"}",
        b'{"prompt": "p", "completion": "a", "weight": ' + b"9" * 4000 + b"}",
        b'{"prompt": "p", "completion": "a", "weight": 1e999}',
        b'{"prompt": "p", "completion": "a", "prompt": "q"}',
        b'{"prompt": [{"role": "user", "role": "tool", "content": "a"}], "completion": "a"}',
    ],
)
def test_lines_beyond_measure_are_named(tmp_path, line):
    with pytest.raises(RowsError, match=r"a\.jsonl:2: (line|prompt\[0\]|weight): expected"):
        read(tmp_path, ROW, line)


def test_a_message_with_a_strange_name_can_be_printed(tmp_path):
    with pytest.raises(RowsError) as error:
        read(tmp_path, {HALF: 1})
    assert "\\ud83d" in str(error.value).encode().decode()


def test_text_keys_are_made_of_anything():
    assert text_key(HALF).encode()
    assert text_key(({"role": "user", "content": "a", "time": object},)).encode()


cheap = settings(derandomize=True, deadline=None, max_examples=100)
leaves = st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.just(HALF)
values = st.recursive(
    leaves, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3)
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "bot"])},
        optional={"content": leaves, "tool_calls": values, "name": values},
    ),
    max_size=3,
)
wholes = st.sampled_from(
    [
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER], "weight": 2},
        {"chosen": [USER, CALLING, TOOL, ANSWER], "rejected": [USER, OTHER], "last_turn": True},
        {"prompt": "p", "completions": ["a", "b", "c"], "votes": [1, 0, 2], "annotator": 7},
        {"prompt": "p", "completions": ["a", "b"], "ratings": [1, None], "group": "g"},
        {"prompt": "p", "completion": "a", "label": True, "ranks": None},
    ]
)
anything = messages | values | st.lists(messages | st.text(max_size=5), max_size=3)
names = st.sampled_from(
    "prompt chosen rejected completion completions label ranks votes weight annotator".split()
)
fields = st.builds(lambda a, b: a | b, wholes, st.dictionaries(names, anything, max_size=2))


@cheap
@given(st.lists(fields, min_size=1, max_size=3))
def test_any_line_is_a_row_that_is_written_and_read_back_or_a_problem(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("any")
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    try:
        rows, report = read_rows(path, on_bad_row="skip", bad_rows_path=folder / "bad.jsonl")
    except RowsError as error:
        assert re.search(r"a\.jsonl", str(error).encode().decode())
        return
    assert report.skipped + len({row.source for row in rows}) == len(records)
    write_rows(folder / "b.jsonl", rows)
    again = [row._replace(source="") for row in read_rows(folder / "b.jsonl")[0]]
    assert again == [row._replace(source="") for row in rows]
    assert all(isinstance(row, Row) for row in again)
