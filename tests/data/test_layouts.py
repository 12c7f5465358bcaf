"""All the ways in which a row can be bad, and their messages."""

import json
import re

import pytest

from shatter.data import read_rows

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
OTHER = {"role": "assistant", "content": "hey"}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
TALK = {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}
THREE = {"prompt": "p", "completions": ["a", "b", "c"]}


def ranked(*ranks):
    return THREE | {"ranks": list(ranks)}


@pytest.mark.parametrize(
    ("record", "field", "expected", "found"),
    [
        # the line
        (b'{"prompt": "p', "line", "a whole JSON object", "Unterminated string"),
        (b"[" * 100_000, "line", "a whole JSON object", "list|recursion|Expecting"),
        (b'{"weight": ' + b"9" * 5_000 + b"}", "line", "a whole JSON object", "bytes|digits"),
        (b'"text"', "line", "a JSON object", "str 'text'"),
        ([PAIR, PAIR], "line", "a JSON object", "list of length 2"),
        (b"\xff\xfe{}", "line", "UTF-8", "byte 0xff at 0"),
        ('{"prompt": "é"}'.encode("latin-1"), "line", "UTF-8", "byte 0xe9 at 12"),
        # the layout
        ({}, "row", "one layout", r"the fields \(none\); a row is prompt, chosen, rejected"),
        ({"question": 1, "text": 2}, "row", "one layout", "the fields question, text"),
        (PAIR | {"completion": "c"}, "row", "one layout", "chosen, completion, prompt, rejected"),
        ({"prompt": "p", "chosen": "a"}, "rejected", "this field beside chosen", "chosen, prompt"),
        ({"prompt": "p", "rejected": "a"}, "chosen", "this field", "the fields prompt, rejected"),
        (PAIR | {"rejected": None}, "rejected", "this field", "the fields"),
        ({"completion": "a"}, "prompt", "this field beside completion", "the fields completion"),
        (THREE, "ranks", "one of ranks, ratings, votes", "the fields completions, prompt"),
        (ranked(1, 2, 3) | {"ratings": [1, 2, 3]}, "ranks", "one of ranks", "ratings"),
        # types
        (PAIR | {"prompt": 3}, "prompt", "a text or a list of messages", "int 3"),
        (PAIR | {"chosen": {"text": "a"}}, "chosen", "a text or a list", "dict"),
        (THREE | {"completions": "abc", "ranks": [1]}, "completions", "a list of texts", "str"),
        (THREE | {"completions": [], "ranks": []}, "completions", "a list of texts", "list"),
        (THREE | {"completions": ["a", 1], "ranks": [1, 2]}, r"completions\[1\]", "a text", "int"),
        (PAIR | {"annotator": ["x"]}, "annotator", "a name or a whole number", "list"),
        (PAIR | {"group": True}, "group", "a name or a whole number", "bool True"),
        (PAIR | {"weight": 0}, "weight", "a number above 0", "0.0"),
        (PAIR | {"weight": 10**400}, "weight", "a number", "int 1000"),
        (PAIR | {"weight": "2"}, "weight", "a number", "str '2'"),
        (PAIR | {"weight": float("nan")}, "weight", "a number", "float nan"),
        (b'{"prompt": "\\ud83e", "completion": "c"}', "prompt", "UTF-8", "surrogate .* 0"),
        # empty or the same
        (PAIR | {"chosen": ""}, "chosen", "a completion with something in it", "str ''"),
        (PAIR | {"rejected": " \n"}, "rejected", "a completion with something", "str"),
        (PAIR | {"chosen": "b"}, "rejected", "a completion of its own", "that of chosen again"),
        (
            THREE | {"completions": ["a", "b", "a"], "ranks": [1, 2, 3]},
            r"completions\[2\]",
            "a completion of its own",
            r"that of completions\[0\] again: str 'a'",
        ),
        (TALK | {"rejected": [ANSWER]}, "rejected", "a completion of its own", "that of chosen"),
        ({"chosen": "a b", "rejected": "a b"}, "rejected", "a completion of its own", "that of"),
        # answers that say nothing
        (ranked(1, 2), "ranks", "a list of 3 numbers, one a completion", "list of length 2"),
        (ranked(1, 2, 1.5), r"ranks\[2\]", "a whole number", "float 1.5"),
        (ranked(1, True, 2), r"ranks\[1\]", "a whole number", "bool True"),
        (ranked("1", 2, 3), r"ranks\[0\]", "a whole number", "str '1'"),
        (ranked(1, 2, 2**31), r"ranks\[2\]", "a whole number", "int 2147483648"),
        (ranked(-1, -1, -2), "ranks", "a rank >= 0", "list of length 3"),
        (THREE | {"ranks": 1}, "ranks", "a list of 3 numbers", "int 1"),
        (PAIR | {"completion": None, "ranks": None, "chosen": None}, "chosen", "this field", ""),
        ({"prompt": "p", "completion": "c", "label": 1}, "label", "true or false", "int 1"),
        ({"prompt": "p", "completion": "c", "label": "yes"}, "label", "true or false", "str"),
        (THREE | {"ratings": [1, 2]}, "ratings", "a list of 3 numbers", "length 2"),
        (THREE | {"ratings": [1, "2", 3]}, r"ratings\[1\]", "a number", "str '2'"),
        (THREE | {"ratings": [1, float("inf"), 3]}, r"ratings\[1\]", "a number", "float inf"),
        (THREE | {"ratings": [None] * 3}, "ratings", "at least one number", "list"),
        (THREE | {"votes": [1, 2]}, "votes", "3 numbers.*one more: how many chose none", "list"),
        (THREE | {"votes": [1, 2, -1]}, "votes", "counts >= 0, one of them above 0", "list"),
        (THREE | {"votes": [0, 0, 0]}, "votes", "counts >= 0, one of them above 0", "list"),
        (THREE | {"completions": ["a"], "votes": [1, 2]}, "completions", "at least two", "1"),
        # numbers that float32 cannot add up
        (PAIR | {"weight": 1e39}, "weight", "a number from 1e-15 to 1e.15", "1e.39, beyond"),
        (PAIR | {"weight": 2e-46}, "weight", "a number from 1e-15", "2e-46, beyond"),
        (PAIR | {"weight": 10**40}, "weight", "a number from 1e-15", "1e.40, beyond"),
        (PAIR | {"weight": 10**400}, "weight", "a number", "int 1000"),
        (THREE | {"votes": [1, 2, 5e38]}, r"votes\[2\]", "a number from 1e-15", "5e.38"),
        (THREE | {"votes": [3e-40, 0, 0]}, r"votes\[0\]", "a number from 1e-15", "3e-40"),
        (THREE | {"votes": [1e9, 0, 0], "weight": 1e9}, "weight", "from 1e-15", "1e.18, beyond"),
        (THREE | {"ratings": [1, 10**400, 3]}, r"ratings\[1\]", "a number", "int 1000"),
        (PAIR | {"annotator": 3.5}, "annotator", "a name or a whole number", "float 3.5"),
        (PAIR | {"annotator": float("nan")}, "annotator", "a name or a whole number", "float nan"),
        (PAIR | {"group": 1e300}, "group", "a name or a whole number", "float 1e.300"),
        # conversations
        (TALK | {"prompt": ["hi"]}, r"prompt\[0\]", "a message", "str 'hi'"),
        (
            TALK | {"prompt": [{"from": "human", "value": "hi"}]},
            r"prompt\[0\]",
            "a message",
            "from",
        ),
        (TALK | {"prompt": [USER | {"role": "bot"}]}, r"prompt\[0\].role", "one of system", "bot"),
        (
            TALK | {"chosen": [ANSWER | {"content": [1]}]},
            r"chosen\[0\].content",
            "a text",
            "list",
        ),
        (TALK | {"chosen": [ANSWER, USER]}, "chosen", "last message is the assistant's", "user"),
        (TALK | {"chosen": []}, "chosen", "last message is the assistant's", r"the roles \[\]"),
        (TALK | {"chosen": [USER, ANSWER]}, r"chosen\[0\].role", "assistant or tool", "user"),
        (TALK | {"chosen": [ANSWER | {"content": " "}]}, "chosen", "something in it", "str ' '"),
        (
            TALK | {"prompt": [USER, ANSWER]},
            "prompt",
            "last message is not the assistant's",
            "ends with the assistant",
        ),
        (
            TALK | {"chosen": "a"},
            "chosen",
            "a conversation, as the prompt is",
            "a text; a text",
        ),
        (
            TALK | {"chosen": [ANSWER | {"content": ""}]},
            "chosen",
            "a completion with some",
            "str ''",
        ),
        (PAIR | {"chosen": [ANSWER]}, "chosen", "a text, as the prompt is", "a conversation"),
        (
            {"prompt": "other", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
            "prompt",
            "the text of a message that both completions start with",
            "str 'other'",
        ),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER | {"content": "x"}, OTHER]},
            r"chosen\[0\].role",
            "assistant or tool",
            "user",
        ),
        ({"chosen": "a b", "rejected": [OTHER]}, "rejected", "a text, as the prompt is", "a conv"),
        ({"chosen": [], "rejected": [OTHER]}, "chosen", "last message is the assistant's", "roles"),
    ],
)
def test_bad_rows_are_named(tmp_path, record, field, expected, found):
    raw = record if isinstance(record, bytes) else json.dumps(record).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(PAIR).encode() + b"\n" + raw + b"\n")
    rows, report = read_rows(path, on_bad_row="skip")
    assert len(rows) == 1 and len(report.problems) == 1
    message = str(report.problems[0])
    assert message.startswith(f"{path}:2: ") and "\n" not in message
    pattern = rf"{field}: expected .*{expected}.*, found .*{found}"
    assert re.search(pattern, message), message


def test_numbers_that_are_names_and_ratings_that_differ_in_the_last_digit(tmp_path):
    path = tmp_path / "rows.jsonl"
    rated = THREE | {"ratings": [2**60, 2**60 + 1, float(2**60)]}
    records = [PAIR | {"annotator": name, "group": name} for name in (3, 3.0, "3")] + [rated]
    path.write_text("\n".join(map(json.dumps, records)))
    rows, _ = read_rows(path)
    assert [(row.annotator, row.group) for row in rows[:3]] == [("3", "3")] * 3
    assert rows[3].ranks == (2, 1, 2)
