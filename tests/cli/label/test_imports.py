import json
import re

import pytest

from shatter.cli.common.binary import UsageError
from shatter.cli.label import answers
from shatter.cli.label.events import Event
from shatter.cli.label.export import export_answers
from shatter.cli.label.imports import import_answers
from shatter.cli.label.queries import TextQuery, read_queries, write_queries
from shatter.cli.label.writer import open_writer
from shatter.data import read_rows

PAIR = {"prompt": "p", "chosen": " good", "rejected": " bad", "annotator": "Ann"}
UNNAMED = {name: value for name, value in PAIR.items() if name != "annotator"}
USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "Größe?"), ("assistant", "2 m"), ("assistant", "zwei"))
)


@pytest.fixture
def load(tmp_path):
    """`load(*records) -> (imported, queries, answers)`, into one folder."""

    def run(*records, name="other.jsonl", **options):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        with open_writer(tmp_path / "answers.jsonl") as file:
            imported = import_answers(path, tmp_path / "queries", file, **options)
        found = read_queries(tmp_path / "queries")
        current = answers.current_answers(tmp_path / "answers.jsonl")
        answers.check_known(current, found)
        return imported, found, current

    return run


def said(answer, queries):
    """Returns the annotator, the rank of each text and the weight of an answer."""
    texts = queries[answer.query_id].completions
    return answer.annotator, dict(zip(texts, answer.ranks, strict=True)), answer.weight


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (PAIR, [("Ann", {" good": 1, " bad": 2}, 1.0)]),
        (PAIR | {"annotator": None, "weight": 2}, [("import", {" good": 1, " bad": 2}, 2.0)]),
        ({"chosen": "a b", "rejected": "a c"}, [("import", {" b": 1, " c": 2}, 1.0)]),
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 1], "annotator": 7},
            [("7", {"a": 2, "b": 1, "c": 1}, 1.0)],
        ),
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "ratings": [2.5, None, 9]},
            [("import", {"a": 2, "c": 1}, 1.0)],  # b was not shown
        ),
        (
            {"prompt": "", "completions": ["a", "b"], "votes": [3, 0, 2]},
            [("import", {"a": 1, "b": 2}, 3.0), ("import", {"a": 1, "b": 1}, 2.0)],
        ),
    ],
)
def test_layouts_become_a_query_and_answers(load, record, expected):
    imported, queries, found = load(record)
    assert [said(answer, queries) for answer in found] == expected
    assert imported == (1, len(expected), 0, ())
    ((query_id, query),) = queries.items()
    assert query_id.startswith("import-") and query_id.endswith("-1") and query.round == "import"


def test_conversations(load):
    _, queries, found = load({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
    (query,) = queries.values()
    assert query.prompt == (USER,) and query.completions == ((GOOD,), (BAD,))
    assert found[0].ranks == (1, 2)


def test_labels_are_compared_within_their_prompt(load):
    rows = [{"prompt": "p", "completion": text, "label": text < "b"} for text in ("a", "b", "c")]
    _, queries, found = load(*rows)
    assert [said(answer, queries)[1] for answer in found] == [{"a": 1, "b": 2, "c": 2}]


def test_the_same_file_again_adds_nothing(load, tmp_path):
    rows = [UNNAMED, UNNAMED, PAIR, PAIR, PAIR | {"annotator": "Bo"}, PAIR | {"prompt": "q"}]
    first = load(*rows)
    assert first[0] == (2, 5, 1, ())  # unnamed rows count as often as they come, Ann's once
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    again = load(*rows)
    assert again[0] == (0, 0, 6, ()) and again[1:] == first[1:]
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}


def test_of_a_file_that_has_grown_only_what_is_new_is_added(load, tmp_path):
    before = load(UNNAMED, UNNAMED, PAIR, name="export_1.jsonl")[2]
    rows = [PAIR | {"prompt": "q"}, *[UNNAMED] * 3, PAIR, PAIR | {"annotator": "Bo"}]
    imported, queries, found = load(*rows, name="export_2.jsonl")
    assert imported == (1, 3, 3, ())
    assert found[:3] == before and len(found) == 6 and len(queries) == 2
    assert len(list((tmp_path / "queries").glob("*.jsonl"))) == 2


def test_a_weight_that_no_answer_can_have_is_a_bad_row(load):
    with pytest.raises(UsageError, match=r"other.jsonl:2: weight: expected a number"):
        load(PAIR, PAIR | {"prompt": "q", "weight": 1e-40})


@pytest.mark.parametrize("name", ["a\nb", "x" * 65, "\x1b[31mred"])
def test_names_that_nobody_could_type_are_bad_rows(load, name):
    with pytest.raises(UsageError, match=r"other.jsonl:2: annotator: expected a name of 1 to 64"):
        load(PAIR, PAIR | {"annotator": name})


def test_answers_to_one_comparison_share_its_query(load):
    """Whoever gave them, and in whatever order the file lists the completions."""
    turned = {"prompt": "p", "chosen": " bad", "rejected": " good", "annotator": "Bo"}
    tie = {"prompt": "p", "completions": [" bad", " good"], "ranks": [1, 1]}
    _, queries, found = load(PAIR, turned, tie)
    assert len(queries) == 1 and len({answer.query_id for answer in found}) == 1
    assert [said(answer, queries)[:2] for answer in found] == [
        ("Ann", {" good": 1, " bad": 2}),
        ("Bo", {" good": 2, " bad": 1}),
        ("import", {" good": 1, " bad": 1}),
    ]


def test_answers_to_queries_that_were_asked_here(load, tmp_path, queries):
    """The answers were given in another tool."""
    write_queries(tmp_path / "queries" / "round_0000.jsonl", queries.values())
    row = {"prompt": "prompt 2", "completions": [f"response 2.{k}" for k in (2, 0, 1)]}
    imported, found, (answer,) = load(row | {"ranks": [1, 2, 2]})
    assert imported.num_queries == 0 and len(found) == 5
    assert (answer.query_id, answer.ranks) == ("r0000-q002", (2, 2, 1))


def test_a_query_of_the_same_texts_that_is_asked_later_changes_nothing(load, tmp_path):
    _, _, before = load(PAIR)
    later = TextQuery("r0000-q000", "p", (" bad", " good"))
    write_queries(tmp_path / "queries" / "round_0000.jsonl", [later])
    imported, _, after = load(PAIR)
    assert imported.num_known == 1 and after == before


def test_a_name_for_those_who_leave_none(load):
    load(PAIR | {"annotator": None}, annotator="first")
    _, _, found = load(PAIR | {"annotator": None}, annotator="second")
    assert [answer.annotator for answer in found] == ["first", "second"]


def test_an_undone_import_stays_undone(load, tmp_path):
    _, _, (answer,) = load(PAIR)
    with open_writer(tmp_path / "answers.jsonl") as file:
        undo = Event("undo", "u", answer.query_id, "Ann", undoes=answer.event_id)
        file.append(undo)
    assert load(PAIR)[2] == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, r"other.jsonl:2: rejected: expected this field"),
        ({"prompt": "p", "completion": "c"}, r"other.jsonl:2: completions: expected two .*found 1"),
        (
            {"prompt": "p", "completions": ["a", "b"], "ranks": [1, -1]},
            r"other.jsonl:2: completions: expected two completions that were shown.*found 1",
        ),
        ({"prompt": "x", "completion": "c", "label": True}, r"other.jsonl:2: label: expected"),
    ],
)
def test_bad_rows(load, tmp_path, record, message):
    with pytest.raises(UsageError, match=message):
        load(PAIR, record)
    assert (tmp_path / "answers.jsonl").read_bytes() == b""
    assert not (tmp_path / "queries").exists()
    imported, _, found = load(PAIR, record, on_bad_row="skip")
    assert len(found) == imported.num_answers == len(imported.problems) == 1
    with pytest.raises(UsageError, match=r"none of its rows is a comparison|no good one is left"):
        load(record, on_bad_row="skip")


def test_files_that_cannot_be_read(tmp_path):
    with open_writer(tmp_path / "answers.jsonl") as file:
        for name in ("none.jsonl", "answers.csv"):
            (tmp_path / "answers.csv").touch()
            with pytest.raises(UsageError, match=name):
                import_answers(tmp_path / name, tmp_path / "queries", file)


def test_an_import_that_was_interrupted_goes_on(load, tmp_path):
    """Queries are written before answers."""
    load(PAIR, PAIR | {"prompt": "q"})
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    path.with_name("answers.jsonl.confirmed").unlink()  # it is written after the lines
    imported, _, found = load(PAIR, PAIR | {"prompt": "q"})
    assert imported == (0, 1, 1, ()) and len(found) == 2


def conversation(first, question, last):
    more = [{"role": "user", "content": question}, {"role": "assistant", "content": last}]
    return [USER, first, *more]


TURNS = {
    "chosen": conversation(GOOD, "And?", "yes"),
    "rejected": conversation(BAD, "So?", "no"),
}  # they part before their last turn


def exported(folder):
    """The rows of the export of a folder."""
    path = folder / "export.jsonl"
    export_answers(folder, str(path))
    return read_rows(path)[0]


def test_the_last_turn_alone_counts_after_any_road(load, tmp_path):
    """A conversation without a prompt of its own: the choice was about its last message."""
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps(TURNS) + "\n")
    (row,) = read_rows(path)[0]
    assert row.last_turn
    load(TURNS)
    (same,) = exported(tmp_path)
    assert same[:3] == row[:3] and same.last_turn
    other = tmp_path / "other"
    with open_writer(other / "answers.jsonl") as file:
        import_answers(tmp_path / "answers.jsonl", other / "queries", file)
    assert [row.last_turn for row in exported(other)] == [True]
    load(TURNS | {"last_turn": False, "chosen": conversation(GOOD, "And?", "perhaps")})
    assert [row.last_turn for row in exported(tmp_path)] == [True, False]


def test_damaged_lines_of_an_answer_file_may_be_left_out(load, tmp_path):
    source = tmp_path / "source"
    rows = [PAIR, PAIR | {"prompt": "q"}, PAIR | {"prompt": "r"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_writer(source / "answers.jsonl") as file:
        import_answers(path, source / "queries", file)
    path = source / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"ranks"', b'"ranks" ;') + lines[2])
    note = path.with_name("answers.jsonl.confirmed")
    for is_noted in (True, False):
        target = tmp_path / f"target {is_noted}"
        with open_writer(target / "answers.jsonl") as file:
            with pytest.raises(UsageError, match=r"answers.jsonl"):
                import_answers(path, target / "queries", file)
            counts = import_answers(path, target / "queries", file, on_bad_row="skip")
        assert counts.num_answers == 2
        problems = [str(problem) for problem in counts.problems]
        assert re.search(r"answers.jsonl:2: line: expected a whole JSON object", problems[-1])
        assert len(problems) == 1 + is_noted
        assert not is_noted or re.search(r"expected all that was confirmed.*changed", problems[0])
        note.unlink(missing_ok=True)
