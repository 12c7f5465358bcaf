import errno
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from shatter.cli.common.binary import UsageError
from shatter.cli.label import answers, asking, terminal
from shatter.cli.label.queries import TextQuery, write_queries
from shatter.cli.label.writer import open_writer

IDS = [f"r0000-q{n:03}" for n in range(5)]


@pytest.fixture
def session(tmp_path, queries):
    """`session(keys) -> (standing, what was shown, events)`, in one file."""
    path = tmp_path / "answers.jsonl"

    def run(keys, *, annotator="Ann", asked=queries, width=80, before_key=lambda file: None):
        console = Console(file=io.StringIO(), width=width, highlight=False)
        left = iter(keys)
        with open_writer(path) as file:

            def read_key():
                before_key(file)
                return next(left, "")

            place = terminal.answer_in_terminal(
                asked, file, annotator=annotator, seed=3, console=console, read_key=read_key
            )
        return place, console.file.getvalue(), answers.read_events(path)

    return run


def test_keys_become_events(session, queries):
    place, shown, events = session(["2", "t", "3", "s", "1"])
    assert [event.query_id for event in events] == IDS
    assert [event.event for event in events] == ["answer"] * 3 + ["skip", "answer"]
    orders = [asking.display_order(query, annotator="Ann", seed=3) for query in queries.values()]
    assert [event.order for event in events] == orders
    chosen = [orders[0][1], None, orders[2][2], None, orders[4][0]]
    assert [event.ranks for event in events] == [
        tuple(1 if k == chosen[0] else 2 for k in range(2)),
        (1, 1),
        tuple(1 if k == chosen[2] else 2 for k in range(3)),
        None,
        tuple(1 if k == chosen[4] else 2 for k in range(2)),
    ]
    assert {event.annotator for event in events} == {"Ann"}
    assert all(0 <= event.seconds < 10 for event in events)
    assert place == (None, 4, 1, 5, events[-1]._replace(source=""))
    assert "3 of 5 answered, 1 skipped" in shown
    assert "All done: 4 of 5 answered, 1 skipped. Answers in " in shown


def test_responses_stand_in_the_order_of_the_keys(session, queries):
    shown = session([])[1]
    order = asking.display_order(queries[IDS[0]], annotator="Ann", seed=3)
    places = [shown.index(f"response 0.{k}") for k in order]
    assert shown.index("prompt 0") < places[0] < places[1]
    assert shown.index(" 1 ") < places[0] < shown.index(" 2 ") < places[1]


def test_an_event_is_in_the_file_before_the_next_query(session):
    lengths = []
    session(
        ["1", "x", "2", "u", "q"], before_key=lambda file: lengths.append(file.path.stat().st_size)
    )
    assert lengths[0] == 0 < lengths[1] == lengths[2] < lengths[3] < lengths[4]


def test_undo_goes_back(session):
    place, shown, events = session(["u", "1", "2", "u", "u", "2"])
    assert [(event.event, event.query_id) for event in events] == [
        ("answer", IDS[0]),
        ("answer", IDS[1]),
        ("undo", IDS[1]),
        ("undo", IDS[0]),
        ("answer", IDS[0]),
    ]
    assert [event.undoes for event in events[2:4]] == [events[1].event_id, events[0].event_id]
    assert "Nothing to undo. Keys: 1 2 = the best" in shown
    assert place.num_answered == 1 and place.query.query_id == IDS[1]


def test_unknown_keys_help_and_record_nothing(session):
    place, shown, events = session(["3", "0", "\x1b[1~", "ü", "12", "Q"])
    assert events == [] and place.num_answered == 0
    assert shown.count("Keys: 1 2 = the best, t = tie, s = skip, u = undo, q = quit") == 6
    assert "Stopped: 0 of 5 answered. Answers in" in shown


def test_resume_asks_what_is_left_in_the_same_order(session):
    first = session(["1", "s"])[1]
    _, second, events = session(["1"])
    assert "prompt 2" in first and second.index("prompt 2") < second.index("prompt 3")
    assert "prompt 0" not in second and "prompt 1" not in second
    panels = [re.findall(r"response 2\.\d", shown) for shown in (first, second)]
    assert panels[0] == panels[1] and len(panels[0]) == 3
    assert [event.query_id for event in events] == IDS[:3]
    other, shown, _ = session([], annotator="Bo")
    assert "prompt 0" in shown and other.num_answered == 0
    session(["1"] * 9)
    assert "All done: 4 of 5 answered, 1 skipped" in session(["1"])[1]


def test_a_full_disk_keeps_the_query(session, monkeypatch):
    write, is_full = os.write, [True, False]

    def full_once(descriptor, content):
        if is_full.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", full_once)
    place, shown, events = session(["1", "2"], width=1000)
    assert "No space left on device. This answer was not recorded" in shown
    assert len(events) == 1 and place.query.query_id == IDS[1]
    order = events[0].order
    assert events[0].ranks[order[1]] == 1  # the second key, not the first


def test_ctrl_c_is_quit(session):
    def interrupt(file):
        raise KeyboardInterrupt

    assert "Stopped" in session(["1"], before_key=interrupt)[1]


def test_conversations_long_texts_and_control_characters(session):
    prompt = (
        {"role": "system", "content": "Be [bold]brief[/bold]."},
        {"role": "user", "content": "word " * 100},
    )
    responses = ("\x1b[2Jred\x07\r\nalert\u202e", "two\tthree\x9b0m")
    turns = tuple(({"role": "assistant", "content": text},) for text in responses)
    query = TextQuery("q", prompt, turns)
    shown = session([], asked={"q": query}, width=130)[1]
    for text in ("system", "user", "assistant", "[bold]brief[/bold]", "␛[2Jred␇", "alert\ufffd"):
        assert text in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    panels = [line for line in shown.splitlines() if line[:1] in "┏┃╭│" and line]
    assert len(panels) > 8 and {len(line) for line in panels} == {100}
    assert shown.count("word") == 100


def test_more_responses_than_keys(session):
    many = TextQuery("q", "p", tuple(f"r{k}" for k in range(10)), source="q.jsonl:1")
    with pytest.raises(UsageError, match=r"q.jsonl:1: .* at most 9 responses, found 10: .*--web"):
        session([], asked={"q": many})


def test_lines_when_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n\n  T \nq"))
    with terminal.open_keys() as read_key:
        assert [read_key() for _ in range(4)] == ["1", "T", "q", ""]


# A real terminal.

PROGRAM = """
import sys
from shatter.cli.common.progress import open_console
from shatter.cli.label import terminal
from shatter.cli.label.queries import read_queries
from shatter.cli.label.writer import open_writer
with open_writer(sys.argv[2]) as file, terminal.open_keys() as read_key:
    terminal.answer_in_terminal(read_queries(sys.argv[1]), file, annotator="Ann", seed=3,
                                console=open_console(), read_key=read_key)
"""


class Terminal:
    """A program in a terminal of its own: reads its output and types keys."""

    def __init__(self, *arguments):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "90"},
        )
        self.shown = ""

    def wait_for(self, text):
        """Reads the output up to and including a text; returns what came before it."""
        end = time.monotonic() + 20
        while text not in self.shown:
            ready, _, _ = select.select([self.master], [], [], end - time.monotonic())
            assert ready, f"{text!r} did not come: {self.shown!r}"
            self.shown += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before

    def press(self, key):
        time.sleep(2 * terminal.TOO_SOON)  # nobody reads faster
        os.write(self.master, key.encode())

    def close(self):
        status = self.program.wait(timeout=20)
        mode = termios.tcgetattr(self.slave)
        os.close(self.master)
        os.close(self.slave)
        return status, mode


@pytest.mark.slow
def test_killed_and_resumed_in_a_terminal(tmp_path, queries):
    """No answer is lost or doubled, and the terminal's mode is restored."""
    asked, path = tmp_path / "round_0000.jsonl", tmp_path / "answers.jsonl"
    write_queries(asked, queries.values())
    killed = Terminal(asked, path)
    killed.wait_for("prompt 0")
    killed.wait_for("q = quit")
    os.write(killed.master, b"2")  # too soon: nobody could have read the query
    killed.press("1")
    killed.wait_for("prompt 1")
    killed.wait_for("q = quit")
    killed.press("\x1b[1~")  # Home, which has a digit in it
    killed.wait_for("q = quit")
    killed.press("t")
    first = killed.wait_for("q = quit")
    killed.program.send_signal(signal.SIGKILL)
    assert killed.close()[0] == -signal.SIGKILL
    with path.open("ab") as file:
        file.write(b'{"event": "answer", "event_id": "half')  # as if it had been writing
    before = answers.current_answers(path)
    assert [event.query_id for event in before] == IDS[:2] and before[1].ranks == (1, 1)
    order = asking.display_order(queries[IDS[0]], annotator="Ann", seed=3)
    assert before[0].ranks[order[0]] == 1

    resumed = Terminal(asked, path)
    again = resumed.wait_for("q = quit")
    panels = [re.findall(r"response \d\.\d", shown) for shown in (first, again)]
    assert panels[0] == panels[1] and len(panels[0]) == 3  # the same query in the same order
    for key, following in (("3", "prompt 3"), ("s", "prompt 4")):
        resumed.press(key)
        resumed.wait_for(following)
        resumed.wait_for("q = quit")
    resumed.press("2")
    resumed.wait_for("All done: 4 of 5 answered, 1 skipped")
    status, mode = resumed.close()
    assert status == 0 and mode == resumed.before
    after = answers.current_answers(path)
    assert after[:2] == before
    assert [event.query_id for event in after] == [IDS[0], IDS[1], IDS[2], IDS[4]]
    assert len({json.loads(line)["event_id"] for line in path.read_bytes().splitlines()}) == 5
    assert b"half" in (tmp_path / "answers.jsonl.torn").read_bytes()
