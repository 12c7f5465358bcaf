import json
import os

import pytest

from shatter.cli.common.binary import UsageError
from shatter.cli.label.queries import TextQuery, read_queries, texts_digest, write_queries

USER = {"role": "user", "content": "Größe? 🦊"}
TURNS = tuple(({"role": "assistant", "content": text},) for text in ("zwei\nMeter", "2 m\u2028"))
FULL = TextQuery(
    "r0001-q000", (USER,), TURNS, 3, (7, 9), 1, "infomax", 0.25, "ab" * 32, 5, 50, "ignored:1"
)


def test_queries_come_back(tmp_path, queries):
    path = tmp_path / "queries" / "round_0000.jsonl"
    write_queries(path, [*queries.values(), FULL])
    found = read_queries(path.parent)
    assert list(found) == [*queries, FULL.query_id]
    assert found[FULL.query_id] == FULL._replace(source=f"{path}:6")
    assert found["r0000-q002"].item_ids == ()
    assert read_queries(path) == found
    record = json.loads(path.read_bytes().splitlines()[-1])
    assert record["completions"][1] == [TURNS[1][0]] and "source" not in record


def test_a_query_needs_three_fields_only(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"query_id": "a", "prompt": "", "completions": ["x", "y"]}\n')
    assert read_queries(path)["a"] == TextQuery("a", "", ("x", "y"), source=f"{path}:1")


def test_files_are_read_in_order_and_ids_are_unique(tmp_path):
    for number in (1, 0):
        write_queries(tmp_path / f"round_{number}.jsonl", [FULL._replace(query_id=f"q{number}")])
    assert list(read_queries(tmp_path)) == ["q0", "q1"]
    write_queries(tmp_path / "round_2.jsonl", [FULL._replace(query_id="q0")])
    with pytest.raises(UsageError, match=r"round_2.jsonl:1: query_id: .*'q0'.*round_0.jsonl:1"):
        read_queries(tmp_path)


def test_queries_are_never_overwritten(tmp_path, queries):
    path = tmp_path / "q.jsonl"
    write_queries(path, queries.values())
    before = path.read_bytes()
    write_queries(path, queries.values())
    with pytest.raises(UsageError, match=r"q.jsonl holds other queries"):
        write_queries(path, [FULL])
    assert path.read_bytes() == before and set(os.listdir(tmp_path)) == {
        "q.jsonl",
        "q.jsonl.sha256",
    }


def test_what_would_not_be_read_is_not_written(tmp_path):
    import numpy as np

    with pytest.raises(ValueError, match=r"q.jsonl:1: prompt_id: expected a whole number, found"):
        write_queries(tmp_path / "q.jsonl", [FULL._replace(prompt_id=np.int64(3))])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_id": None}, "query_id: expected this field"),
        ({"query_id": 3}, "query_id: expected a text"),
        ({"prompt": None}, "prompt: expected this field"),
        ({"completions": ["one"]}, "completions: expected a list of at least two"),
        ({"completions": ["a", "a"]}, r"completions\[1\]: expected a completion of its own"),
        ({"completions": ["a", " "]}, r"completions\[1\]: expected a completion with something"),
        ({"completions": ["a", [{"role": "x"}]]}, r"completions\[1\]\[0\].role: expected one"),
        ({"item_ids": [1]}, "item_ids: expected 2 whole numbers"),
        ({"item_ids": [1, True]}, "item_ids: expected 2 whole numbers"),
        ({"prompt_id": "3"}, "prompt_id: expected a whole number, found str '3'"),
        ({"score": "high"}, "score: expected a number, found str 'high'"),
        ({"seed": 1.5}, "seed: expected a whole number, found float 1.5"),
        ({"model": 4}, "model: expected a text, found int 4"),
    ],
)
def test_bad_queries_are_named(tmp_path, change, message):
    good = {"query_id": "a", "prompt": "p", "completions": ["x", "y"], "item_ids": [1, 2]}
    path = tmp_path / "q.jsonl"
    path.write_text("\n" + json.dumps(good) + "\n" + json.dumps(good | {"query_id": "b"} | change))
    with pytest.raises(UsageError, match=rf"q.jsonl:3: {message}"):
        read_queries(path)


def test_no_query_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(UsageError, match="expected query files"):
            read_queries(path)
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    with pytest.raises(UsageError, match=r"bad.jsonl:1: line: expected a JSON object"):
        read_queries(tmp_path)


def test_a_query_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "round_0000.jsonl"
    for content, message in ((b"", "found none: put"), (b"\xff\n", ":1: line: expected UTF-8")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=rf"round_0000.jsonl.*{message}"):
            read_queries(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=r"round_0000.jsonl cannot be read"):
        read_queries(tmp_path)


def test_the_digest_is_of_the_texts_and_their_order():
    others = [("p", ("b", "a")), ("q", ("a", "b")), ("p", ("a", "b", "c")), ("", ("pa", "b"))]
    others += [("p", ('a", "b',)), ([{"role": "user", "content": "p"}], ("a", "b"))]
    digests = [texts_digest(*texts) for texts in [("p", ("a", "b")), *others]]
    assert len(set(digests)) == len(digests) and {len(one) for one in digests} == {64}
    turned = [{"content": "p", "role": "user"}]
    assert texts_digest(turned, ("a", "b")) == digests[-1]
