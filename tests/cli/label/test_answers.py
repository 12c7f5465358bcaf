import errno
import itertools
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

from shatter.cli.common.binary import UsageError
from shatter.cli.label import answers, asking
from shatter.cli.label.answers import Answer
from shatter.cli.label.events import Event, event_line
from shatter.cli.label.queries import TextQuery
from shatter.cli.label.writer import Conflict, NotRecorded, open_writer

FULL = TextQuery("r0001-q000", "p", ("one", "two"), source="ignored:1")


def answer(number, query_id=None, annotator="Ann", ranks=(1, 2), **fields):
    return Event("answer", f"e{number}", query_id or f"q{number}", annotator, ranks, **fields)


def undo(number, target, annotator="Ann"):
    return Event("undo", f"e{number}", f"q{target}", annotator, undoes=f"e{target}")


def written(path, *events):
    path.write_bytes(b"".join(map(event_line, events)))
    return path


def ids(found):
    return [one.event_id for one in found]


# Reading answers.


def test_events_come_back(tmp_path):
    events = [
        answer(0, order=(1, 0), seconds=1.25, time="2027-01-02T03:04:05+00:00"),
        Event("skip", "e1", "q", "Bo 🦊", order=(0, 1), seconds=0.0, time="t"),
        answer(2, ranks=(1, 2, 2), weight=3.5),
        undo(3, 2),
    ]
    path = written(tmp_path / "answers.jsonl", *events)
    found = answers.read_events(path)
    assert [event.source for event in found] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    assert [event._replace(source="") for event in found] == events


def test_current_answers_keep_order_and_contradictions(tmp_path):
    skip = Event("skip", "e3", "p", "Ann")
    events = [answer(0, "q"), answer(1, "q", "Bo", ranks=(2, 1)), answer(2, "r"), skip]
    events += [undo(4, 2), answer(5, "r", ranks=(1, 1), weight=2.0, texts="ab"), undo(6, 0)]
    path = written(tmp_path / "answers.jsonl", *events)
    assert answers.current_answers(path) == [
        Answer("e1", "q", "Bo", (2, 1), 1.0, f"{path}:2"),
        Answer("e5", "r", "Ann", (1, 1), 2.0, f"{path}:6", texts="ab"),
    ]
    assert answers.current_answers(tmp_path / "none.jsonl") == []


def test_of_two_answers_in_an_older_file_the_last_stands(tmp_path):
    """Older versions recorded two answers of one annotator in two tabs."""
    events = [answer(0, "q"), answer(1, "q", ranks=(2, 1)), answer(2, "q", "Bo")]
    path = written(tmp_path / "answers.jsonl", *events)
    assert ids(answers.current_answers(path)) == ["e1", "e2"]
    with open_writer(path) as file, pytest.raises(Conflict, match="'Ann' has answered or skipped"):
        file.append(answer(3, "q"))
    written(path, *events, undo(3, 1))
    (tmp_path / "answers.jsonl.confirmed").unlink()
    assert ids(answers.current_answers(path)) == ["e0", "e2"]
    written(path, *events, Event("skip", "e3", "q", "Ann"))
    assert ids(answers.current_answers(path)) == ["e2"]


def test_rows_of_many_people_under_one_name_all_stand(tmp_path):
    events = [answer(n, "q", "import")._replace(event_id=f"import-{n}") for n in range(3)]
    path = tmp_path / "answers.jsonl"
    with open_writer(path) as file:
        assert file.append(*events) == 3
    assert len(answers.current_answers(path)) == 3


def test_answers_given_so_far_stay_as_they_are(tmp_path):
    """As long as nothing that is added undoes it."""
    path = written(tmp_path / "answers.jsonl", answer(0), answer(1), undo(2, 0))
    before = answers.current_answers(path)
    path = written(path, answer(0), answer(1), undo(2, 0), answer(3, annotator="Bo"))
    assert answers.current_answers(path)[:-1] == before


def test_a_line_that_comes_twice_counts_once(tmp_path):
    path = written(tmp_path / "a.jsonl", answer(0, time="1"), undo(1, 0), answer(2))
    path.write_bytes(path.read_bytes() + path.read_bytes())
    assert ids(answers.current_answers(path)) == ["e2"]
    written(path, answer(0), answer(0, ranks=(2, 1)))
    with pytest.raises(UsageError, match=r"a.jsonl:2: event_id: .*a.jsonl:1"):
        answers.read_events(path)


def test_readers_ignore_a_torn_last_line_only(tmp_path):
    path = written(tmp_path / "a.jsonl", answer(0), answer(1))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):  # killed at any byte
        path.write_bytes(whole[:end])
        num = 2 if end == len(whole) else int(end >= first)
        assert len(answers.read_events(path)) == num
    path.write_bytes(whole[: first - 5] + b"\n" + whole[first:])
    with pytest.raises(UsageError, match=r"a.jsonl:1: line: expected a whole JSON object"):
        answers.read_events(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event": "maybe"}, "event: expected one of answer, skip, undo, found str 'maybe'"),
        ({"event_id": ""}, "event_id: expected a text that is not empty"),
        ({"event_id": "\udfff"}, "event_id: expected text that UTF-8 can hold, found half"),
        ({"event_id": "a b"}, "event_id: expected 1 to 128 letters, digits"),
        ({"query_id": "\ud83e"}, "query_id: expected text that UTF-8 can hold"),
        ({"annotator": "\ud800"}, "annotator: expected text that UTF-8 can hold"),
        ({"ranks": [1, 2**31]}, r"ranks: expected at least two whole numbers from 0 to 2\^31 - 1"),
        ({"weight": 1e39}, "weight: expected a number above 0, from 1e-37 to 1e37"),
        ({"annotator": 7}, "annotator: expected a text"),
        ({"ranks": None}, "ranks: expected at least two whole numbers"),
        ({"ranks": [1]}, "ranks: expected at least two"),
        ({"ranks": [1, -1]}, "ranks: expected at least two"),
        ({"ranks": [1, 2.0]}, "ranks: expected at least two"),
        ({"order": [1, 2]}, "order: expected the numbers from 0 to K - 1"),
        ({"order": [2, 1, 0]}, "ranks: expected 3 whole numbers"),
        ({"seconds": -1}, "seconds: expected a number of at least 0"),
        ({"weight": 0}, "weight: expected a number above 0"),
        ({"weight": float("nan")}, "weight: expected a number above 0"),
        ({"event": "undo"}, "undoes: expected a text that is not empty"),
        ({"event": "undo", "undoes": "e1"}, "undoes: expected an earlier answer or skip of 'Ann'"),
        ({"event": "undo", "undoes": "e9"}, "undoes: .*found 'e9'"),
        ({"event": "undo", "undoes": "e0", "annotator": "Bo"}, "undoes: .* of 'Bo'"),
    ],
)
def test_damaged_events_are_named(tmp_path, change, message):
    path = written(tmp_path / "a.jsonl", answer(0))
    record = json.loads(event_line(answer(1))) | change
    path.write_text(path.read_text() + json.dumps(record) + "\n")
    with pytest.raises(UsageError, match=rf"a.jsonl:2: {message}"):
        answers.read_events(path)


def test_nothing_is_undone_twice(tmp_path):
    path = written(tmp_path / "a.jsonl", answer(0), undo(1, 0), undo(2, 0))
    with pytest.raises(UsageError, match=r"a.jsonl:3: undoes"):
        answers.read_events(path)


def test_check_known(queries):
    good = Answer("e", "r0000-q002", "Ann", (1, 2, 2), source="a.jsonl:1")
    answers.check_known([good], queries)
    unknown = good._replace(query_id="r0009-q000", source="a.jsonl:2")
    with pytest.raises(UsageError, match=r"a.jsonl:2: query_id: .*'r0009-q000'; put the query"):
        answers.check_known([good, unknown], queries)
    with pytest.raises(UsageError, match=r"a.jsonl:1: ranks: expected 3 ranks"):
        answers.check_known([good._replace(ranks=(1, 2))], queries)


# Writing answers.


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new folder" / "answers.jsonl"
    with open_writer(path) as file:
        assert file.append(answer(0)) == 1 and file.append(answer(1), undo(2, 0)) == 2
        assert file.append() == 0
        assert ids(answers.read_events(path)) == ids(file.events) == ["e0", "e1", "e2"]
    before = path.read_bytes()
    with open_writer(path) as file:
        file.append(answer(3))
    assert path.read_bytes().startswith(before) and path.read_bytes().count(b"\n") == 4
    with open_writer(path) as file:
        assert ids(file.events) == ["e0", "e1", "e2", "e3"]


def test_every_event_is_synced_before_append_returns(tmp_path, monkeypatch):
    synced = []
    with open_writer(tmp_path / "a.jsonl") as file:
        monkeypatch.setattr(os, "fsync", lambda _: synced.append(file.path.read_bytes()))
        file.append(answer(0))
        assert synced == [event_line(answer(0))] * 2  # of the file, then of its note
        file.append(answer(1), answer(2))
        assert len(synced) == 4 and synced[2].count(b"\n") == 3


def test_an_event_that_is_sent_twice_is_recorded_once(tmp_path):
    path = tmp_path / "a.jsonl"
    with open_writer(path) as file:
        assert file.append(answer(0, time="1"), answer(0, time="2")) == 1
        assert file.append(answer(0, time="3", seconds=2.0)) == 0
    with open_writer(path) as file:
        assert file.append(answer(0, time="4")) == 0
        with pytest.raises(Conflict, match="'e0' already, as answer to query 'q0'"):
            file.append(answer(1), answer(0, ranks=(2, 1)))
    assert path.read_bytes() == event_line(answer(0, time="1"))


@pytest.mark.parametrize(
    "change", [{"weight": 1e-45}, {"event_id": "a b"}, {"ranks": (1,)}, {"annotator": " "}]
)
def test_what_would_not_be_read_is_not_recorded(tmp_path, change):
    with open_writer(tmp_path / "a.jsonl") as file:
        with pytest.raises(ValueError, match=f"{next(iter(change))}: expected"):
            file.append(answer(0), answer(1)._replace(**change))
        assert file.path.read_bytes() == b"" and file.events == []


def test_a_torn_line_is_moved_aside(tmp_path):
    path = written(tmp_path / "a.jsonl", answer(0))
    whole, torn = path.read_bytes(), tmp_path / "a.jsonl.torn"
    for end in (b'{"event": "answ', b"\0\0\0"):
        path.write_bytes(whole + end)
        with open_writer(path) as file:
            assert ids(file.events) == ["e0"] and path.read_bytes() == whole
    assert torn.read_bytes() == b'{"event": "answ\n\0\0\0\n'
    with open_writer(path) as file:
        file.append(answer(1))
    assert ids(answers.read_events(path)) == ["e0", "e1"]


def test_a_damaged_file_is_left_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{\n")
    with pytest.raises(UsageError, match=r"a.jsonl:1: line"), open_writer(path):
        pass
    assert path.read_bytes() == b"{\n"
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=r"a.jsonl cannot be read: Is a directory"):
        with open_writer(path):
            pass


@pytest.mark.slow
def test_one_process_writes(tmp_path):
    path = tmp_path / "a.jsonl"
    command = f"""
        from shatter.cli.label.writer import open_writer
        with open_writer({str(path)!r}):
            print("open", flush=True)
            input()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(UsageError, match=rf"a.jsonl is open .* process {other.pid}: .*--web"):
            with open_writer(path):
                pass
        other.kill()
    with open_writer(path) as file:  # the lock ends with the process
        assert (tmp_path / "a.jsonl.lock").read_text() == f"{os.getpid()}\n"
        file.append(answer(0))
        with pytest.raises(UsageError, match=str(os.getpid())), open_writer(path):
            pass
    assert ids(answers.read_events(path)) == ["e0"]


def test_one_answer_or_skip_a_query_and_annotator(tmp_path):
    path = tmp_path / "a.jsonl"
    with open_writer(path) as file:
        file.append(answer(0, "q"))
        for second in (
            answer(1, "q"),
            answer(1, "q", ranks=(2, 1)),
            Event("skip", "e1", "q", "Ann"),
        ):
            with pytest.raises(Conflict, match="'Ann' has answered or skipped query 'q' already"):
                file.append(answer(9), second)  # all or none
        for target in (answer(0, "q", "Bo"), answer(7)):
            with pytest.raises(Conflict, match="is no answer or skip of"):
                file.append(asking.undo(target))
        file.append(answer(2, "q", "Bo"), undo(3, 0), answer(4, "q"), undo(5, 4), answer(6, "q"))
        with pytest.raises(Conflict, match="'e4' is no answer or skip of 'Ann' that stands"):
            file.append(undo(8, 4))
    assert ids(answers.current_answers(path)) == ["e2", "e6"]


@pytest.mark.parametrize("num_bytes", [0, 1, 40, None])
@pytest.mark.parametrize("can_cut", [True, False])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, num_bytes, can_cut):
    """The disk takes `num_bytes` bytes, or all but cannot sync; it may not even be cut back."""
    path, write = tmp_path / "a.jsonl", os.write
    left = [num_bytes]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_some(descriptor, content):
        if left[0] == 0:
            full()
        num = len(content) if left[0] is None else left[0]
        left[0] = 0 if left[0] is not None else None
        return write(descriptor, content[:num])

    with open_writer(path) as file:
        file.append(answer(0))
        before = path.read_bytes()
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", write_some)
            if num_bytes is None:
                disk.setattr(os, "fsync", full)
            if not can_cut:
                disk.setattr(os, "ftruncate", full)
            for _ in range(2):
                with pytest.raises(NotRecorded, match=r"No space left .* was not recorded; all"):
                    file.append(answer(1))
                assert ids(file.events) == ["e0"]
            assert path.read_bytes().startswith(before)
            if can_cut:
                assert path.read_bytes() == before
        file.append(answer(1))
    assert path.read_bytes() == before + event_line(answer(1))


@pytest.mark.slow
def test_a_file_that_may_not_grow(tmp_path):
    """The system itself refuses to write on in the middle of a line."""
    path = tmp_path / "a.jsonl"
    command = f"""
        import resource
        from shatter.cli.label.events import Event
        from shatter.cli.label.writer import NotRecorded, open_writer
        with open_writer({str(path)!r}) as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
            for n in range(100):
                try:
                    file.append(Event("answer", f"e{{n}}", f"q{{n}}", "Ann", (1, 2)))
                except NotRecorded as error:
                    message = str(error)
                    break
            before = file.path.read_bytes()
            assert before.endswith(b"\\n") and 400 < len(before) <= 500, before
            assert len(file.events) == before.count(b"\\n") == n
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            file.append(Event("answer", f"e{{n}}", f"q{{n}}", "Ann", (1, 2)))
            print(n + 1, message)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    number, message = done.stdout.split(maxsplit=1)
    assert "File too large. This answer was not recorded" in message
    assert ids(answers.read_events(path)) == [f"e{n}" for n in range(int(number))]


def test_another_program_at_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    with open_writer(path) as file:
        file.append(answer(0))
        path.write_bytes(path.read_bytes() + b"more\n")
        with pytest.raises(NotRecorded, match="changed by another program"):
            file.append(answer(1))
        assert path.read_bytes().endswith(
            b"more\n"
        )  # it is not cut, because another program wrote it
        path.unlink()
        with pytest.raises(NotRecorded, match="Put the file back"):
            file.append(answer(1))
        assert not path.exists() and len(file.events) == 1


# What is next.


def test_standing_follows_the_events(queries):
    names, events = list(queries), []

    def place(annotator="Ann"):
        return asking.progress_of(queries, events, annotator)

    assert place() == (queries[names[0]], 0, 0, 5, None)
    events += [answer(0, names[0]), Event("skip", "e1", names[1], "Ann")]
    events += [answer(2, names[0], "Bo")]
    assert place() == (queries[names[2]], 1, 1, 5, events[1])
    assert place("Bo") == (queries[names[1]], 1, 0, 5, events[2])
    assert str(place()) == "1 of 5 answered, 1 skipped" and str(place("Bo")) == "1 of 5 answered"
    for name in (names[1], names[0]):  # the latest first
        events.append(asking.undo(place().last))
        assert place().query == queries[name]
    assert place() == (queries[names[0]], 0, 0, 5, None) and place("Bo").num_answered == 1
    events += [answer(3, names[0]), answer(4, names[2], ranks=(1, 2, 2))]
    events.append(asking.undo(events[-1]))
    assert place().query == queries[names[2]]  # the undone query, and not the first open one
    events.append(answer(6, names[2], ranks=(2, 1, 2)))
    assert place().query == queries[names[1]]


def test_all_done_and_another_round(queries):
    events = [answer(n, name) for n, name in enumerate(queries)]
    assert asking.progress_of(queries, events, "Ann") == (None, 5, 0, 5, events[-1])
    later = {"r0001-q000": FULL}
    # What is not asked now cannot be undone: it could not be shown.
    assert asking.progress_of(later, events, "Ann") == (FULL, 0, 0, 1, None)


def test_display_order_is_random_and_stable(queries):
    query = queries["r0000-q002"]
    orders = [asking.display_order(query, annotator=f"A{n}", seed=0) for n in range(1200)]
    counts = Counter(orders)
    assert set(counts) == set(itertools.permutations(range(3)))
    chi2 = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi2 < 20.5  # 0.1 % of the chi-squared law with 5 degrees of freedom
    assert orders[0] == asking.display_order(query, annotator="A0", seed=0) == (0, 2, 1)
    for change in ({"seed": 1}, {"annotator": "B"}):
        assert orders[:50] != [
            asking.display_order(query, **({"annotator": f"A{n}", "seed": 0} | change))
            for n in range(50)
        ]


@pytest.mark.parametrize(
    ("choice", "ranks"),
    [(0, (2, 2, 1)), (1, (1, 2, 2)), (2, (2, 1, 2)), ("tie", (1, 1, 1)), ("skip", None)],
)
def test_choices(queries, choice, ranks):
    query, order = queries["r0000-q002"], (2, 0, 1)
    event = asking.answer(query, choice, annotator="Ann", order=order, seconds=1.23456)
    assert (event.event, event.ranks) == ("skip" if choice == "skip" else "answer", ranks)
    assert (event.query_id, event.annotator, event.order) == (query.query_id, "Ann", order)
    assert event.seconds == 1.235 and event.time.endswith("+00:00")
    again = asking.answer(query, choice, annotator="Ann", order=order, seconds=1.0)
    assert again.event_id != event.event_id


def test_annotator_names():
    assert asking.annotator_name(" Zoe\u0308 B. ") == "Zoë B."
    for name in ("", "  ", "a\nb", "x" * 65, "\ud800", "\x1b[2J"):
        with pytest.raises(UsageError, match="1 to 64 printable characters"):
            asking.annotator_name(name)


def test_an_imported_answer_to_another_question_hides_no_undo(queries):
    """People may take back only answers to queries that they were asked here."""
    given = asking.answer(
        queries["r0000-q000"], 0, annotator="Ann", order=(0, 1), seconds=1.0, event_id="mine"
    )
    imported = Event("answer", "row-1", "import-0-1", "Ann", (1, 2))
    place = asking.progress_of(queries, [given, imported], "Ann")
    assert place.last == given and place.num_answered == 1
    assert asking.progress_of(queries, [imported], "Ann").last is None
