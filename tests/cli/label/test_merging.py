"""An answer is identified by content and time: it is recorded once, by whatever road it comes."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shatter.cli.common.binary import UsageError
from shatter.cli.label import answers, asking
from shatter.cli.label.events import Event, event_line
from shatter.cli.label.export import export_answers
from shatter.cli.label.imports import import_answers
from shatter.cli.label.queries import TextQuery, read_queries, write_queries
from shatter.cli.label.writer import open_writer

LIONS = ("Which cat?", ("lion", "lynx", "puma"))
TEAS = ("Which tea?", ("mint", "sage"))


def project(folder, *texts, number=0):
    """A project that asks about some texts; query ids are the same in every project."""
    asked = [
        TextQuery(f"r{number:04}-q{n:03}", prompt, completions)
        for n, (prompt, completions) in enumerate(texts)
    ]
    write_queries(folder / "queries" / f"round_{number:04}.jsonl", asked)
    return folder


def say(folder, query_id, choice, annotator="Ann", time="2026-05-05T10:00:00+00:00"):
    query = read_queries(folder / "queries")[query_id]
    order = tuple(reversed(range(len(query.completions))))
    event = asking.answer(query, choice, annotator=annotator, order=order, seconds=2.0)
    with open_writer(folder / "answers.jsonl") as file:
        file.append(event._replace(time=time))
    return event.event_id


def take_back(folder, event_id):
    with open_writer(folder / "answers.jsonl") as file:
        target = next(event for event in file.events if event.event_id == event_id)
        file.append(asking.undo(target))


def take_in(folder, file, **options):
    with open_writer(folder / "answers.jsonl") as writer:
        return import_answers(file, folder / "queries", writer, **options)


def by_export(source, folder, name="export.jsonl"):
    path = source / name
    export_answers(source, str(path))
    return take_in(folder, path)


def by_file(source, folder):
    return take_in(folder, source / "answers.jsonl")


def said(folder):
    """Returns the standing answers with their texts, sorted."""
    queries = read_queries(folder / "queries")
    found = answers.current_answers(folder / "answers.jsonl")
    answers.check_known(found, queries)
    texts = [
        (
            queries[one.query_id].prompt,
            tuple(sorted(zip(queries[one.query_id].completions, one.ranks, strict=True))),
            one.weight,
            one.annotator,
        )
        for one in found
    ]
    return sorted(texts)


@pytest.fixture
def source(tmp_path):
    """Answers of two people, a skip, one taken back, one changed, rows of nobody."""
    folder = project(tmp_path / "source", LIONS, TEAS)
    say(folder, "r0000-q000", 0)
    say(folder, "r0000-q001", "skip")
    take_back(folder, say(folder, "r0000-q000", 2, "Bo"))
    say(folder, "r0000-q000", 1, "Bo", "2026-05-05T11:00:00+00:00")
    take_back(folder, say(folder, "r0000-q001", 1, "Bo"))
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert take_in(folder, path).num_answers == 2
    return folder


@pytest.mark.parametrize("roads", [(a, b) for a in "ef" for b in "ef"])
def test_by_whatever_roads_nothing_is_doubled(source, tmp_path, roads):
    """e: export and import; f: the answer file itself. Into another project, and back."""
    road = {"e": by_export, "f": by_file}
    other = project(tmp_path / "other", TEAS, ("Which cat?", ("puma", "lion", "lynx")))
    there, back = roads
    assert road[there](source, other).num_answers >= 4
    assert said(other) == said(source)
    before = (source / "answers.jsonl").read_bytes()
    assert road[back](other, source).num_answers == 0
    assert (source / "answers.jsonl").read_bytes() == before
    for again in "ef":  # an export has no skips and undos, the answer file has
        road[again](source, other)
        assert said(other) == said(source)
    assert by_export(source, other, "last.jsonl").num_answers == 0
    assert by_file(source, other).num_answers == 0


def test_the_same_project_again(source):
    before = (source / "answers.jsonl").read_bytes()
    assert by_export(source, source).num_answers == 0
    assert by_file(source, source).num_answers == 0
    assert (source / "answers.jsonl").read_bytes() == before


def test_skips_and_undos_are_honoured(source, tmp_path):
    other = project(tmp_path / "other", LIONS, TEAS)
    by_file(source, other)
    kinds = [(e.event, e.annotator) for e in answers.read_events(other / "answers.jsonl")]
    assert kinds == [(e.event, e.annotator) for e in answers.read_events(source / "answers.jsonl")]
    events = answers.read_events(other / "answers.jsonl")
    place = asking.progress_of(read_queries(other / "queries"), events, "Ann")
    assert (place.num_answered, place.num_skipped) == (1, 1)
    # An answer taken back there later is taken back here by the next import.
    take_back(source, events[0].event_id)
    assert by_file(source, other).num_answers == 1
    assert said(other) == said(source)


def test_ids_and_names_of_queries_are_no_identity(source, tmp_path):
    """Two projects whose query ids and event ids are the same, about different texts."""
    other = project(tmp_path / "other", TEAS, LIONS)
    event = answers.read_events(source / "answers.jsonl")[0]
    query = read_queries(other / "queries")["r0000-q000"]
    mine = asking.answer(query, 0, annotator="Ann", order=(0, 1), seconds=1.0)
    with open_writer(other / "answers.jsonl") as file:
        file.append(mine._replace(event_id=event.event_id))
    take_back(source, answers.read_events(source / "answers.jsonl")[1].event_id)
    by_file(source, other)
    assert [one for one in said(other) if one[0] != "Which tea?"] == said(source)
    ids = [event.event_id for event in answers.read_events(other / "answers.jsonl")]
    assert len(set(ids)) == len(ids)


def test_an_answer_file_alone_needs_its_queries_or_their_checksums(source, tmp_path):
    alone = tmp_path / "alone" / "answers.jsonl"
    alone.parent.mkdir()
    alone.write_bytes((source / "answers.jsonl").read_bytes())
    assert take_in(source, alone).num_answers == 0
    other = project(tmp_path / "other", TEAS, LIONS)  # the same names for other texts
    with pytest.raises(UsageError, match=r"answers.jsonl:1: .*put the query file back"):
        take_in(other, alone)
    old = [event._replace(texts=None) for event in answers.read_events(alone)]
    alone.write_bytes(b"".join(map(event_line, old)))
    with pytest.raises(
        UsageError, match=r"answers.jsonl:1: texts: .*put the folder queries of its"
    ):
        take_in(source, alone)
    # The advice: put the folder beside it.
    for file in (source / "queries").iterdir():
        (alone.parent / "queries").mkdir(exist_ok=True)
        (alone.parent / "queries" / file.name).write_bytes(file.read_bytes())
    take_in(other, alone)
    assert said(other) == said(source)


def test_a_compressed_answer_file_is_named(source, tmp_path):
    packed = source / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress((source / "answers.jsonl").read_bytes()))
    other = project(tmp_path / "other", TEAS)
    with pytest.raises(UsageError, match=r"packed.jsonl.gz: expected .* decompress it first"):
        take_in(other, packed)
    unpacked = source / "packed.jsonl"
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    take_in(other, unpacked)
    assert said(other) == said(source)


def test_a_contradiction_of_one_person_is_named_and_may_be_left_out(tmp_path):
    folder = project(tmp_path / "one", TEAS)
    say(folder, "r0000-q000", 0)
    rows = [
        {"prompt": TEAS[0], "completions": TEAS[1], "ranks": ranks, "annotator": "Ann"}
        for ranks in ([1, 2], [2, 1], [1, 1])
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        UsageError, match=r"rows.jsonl:\d: ranks: expected no other answer of 'Ann'"
    ):
        take_in(folder, path)
    with pytest.raises(UsageError, match=r"2 rows are bad; --on_bad_row=skip leaves them out"):
        take_in(folder, path)
    found = take_in(folder, path, on_bad_row="skip")
    assert (found.num_answers, found.num_known, len(found.problems)) == (0, 1, 2)
    assert len(answers.current_answers(folder / "answers.jsonl")) == 1


def test_an_answer_taken_back_stays_so_and_may_be_given_again(tmp_path):
    """The time tells them apart."""
    folder, other = (project(tmp_path / name, TEAS) for name in ("one", "two"))
    first = say(folder, "r0000-q000", 0, time="2026-01-01T00:00:00+00:00")
    by_export(folder, other)
    take_back(folder, first)
    export = folder / "export.jsonl"
    assert take_in(folder, export).num_answers == 0 and said(folder) == []
    with open_writer(other / "answers.jsonl") as file:
        (event,) = file.events
        file.append(asking.undo(event))
    say(other, "r0000-q000", 0, time="2026-01-02T00:00:00+00:00")
    assert by_export(other, folder, "later.jsonl").num_answers == 1
    assert said(folder) == said(other) and len(said(folder)) == 1


def test_rows_of_older_versions_are_known_again(tmp_path):
    """They gave every row the time of the import and an id made from its content."""
    folder = project(tmp_path / "old", TEAS)
    events = [
        Event("answer", f"import-{n}", "r0000-q000", name, (1, 2), time=f"2026-01-0{n}")
        for n, name in enumerate(["Ann", "import", "import"], start=1)
    ]
    (folder / "answers.jsonl").write_bytes(b"".join(map(event_line, events)))
    rows = [{"prompt": TEAS[0], "chosen": "mint", "rejected": "sage"}] * 2
    rows.append(rows[0] | {"annotator": "Ann"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert take_in(folder, path) == (0, 0, 3, ())
    assert by_export(folder, folder).num_answers == 0


ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["Ann", "Bo"]),
        st.sampled_from([0, 1, "tie", "skip", "undo"]),
        st.integers(0, 3),
    ),
    max_size=12,
)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(histories=st.lists(ACTIONS, min_size=2, max_size=2), roads=st.text("ef", max_size=6))
def test_any_history_by_any_roads_doubles_nothing(tmp_path_factory, histories, roads):
    folders = [
        project(tmp_path_factory.mktemp("project") / "p", *texts)
        for texts in ([LIONS, TEAS], [TEAS, LIONS])
    ]
    act(folders[0], histories[0])
    expected = said(folders[0])
    for number, road in enumerate(roads):
        source, target = folders if number % 2 == 0 else reversed(folders)
        if road == "e" and not answers.current_answers(source / "answers.jsonl"):
            continue  # an export without rows cannot be imported
        if road == "f" and not answers.read_events(source / "answers.jsonl"):
            continue
        if road == "e":
            by_export(source, target, f"export{number}.jsonl")
        else:
            by_file(source, target)
        assert said(target) == expected
        assert said(source) == expected


def act(folder: Path, history) -> None:
    """Answers as the page would record them."""
    queries = read_queries(folder / "queries")
    with open_writer(folder / "answers.jsonl") as file:
        for number, (query, annotator, choice, minute) in enumerate(history):
            place = asking.progress_of(queries, file.events, annotator)
            if choice == "undo":
                if place.last is not None:
                    file.append(asking.undo(place.last, event_id=f"u{number}"))
                continue
            asked = queries[f"r0000-q{query:03}"]
            order = tuple(range(len(asked.completions)))
            event = asking.answer(
                asked, choice, annotator=annotator, order=order, seconds=1.0, event_id=f"e{number}"
            )
            done = answers.standing_events(file.events)
            if all((e.query_id, e.annotator) != (asked.query_id, annotator) for e in done):
                file.append(event._replace(time=f"2026-01-01T00:0{minute}:00+00:00"))
    times = [event.source for event in answers.read_events(folder / "answers.jsonl")]
    assert all(first != second for first, second in pairwise(times))
