"""What was confirmed is missed when it goes, and every way on is one that works."""

import json
import os
import re
import shlex

import pytest

from experiments.common.binary import UsageError
from experiments.label import answers, writer
from experiments.label.answers import Event
from experiments.label.config import Accept
from experiments.label.confirmed import confirmed_file, content_of
from experiments.label.run import experiment
from experiments.label.writer import NotRecorded, open_writer


def event(number):
    return Event("answer", f"e{number}", f"q{number}", "Ann", (1, 2))


@pytest.fixture
def path(tmp_path):
    """An answer file with three answers."""
    path = tmp_path / "a project" / "answers.jsonl"
    with open_writer(path) as file:
        file.append(event(0))
        file.append(event(1), event(2))
    return path


def ids(path):
    return [one.event_id for one in answers.current_answers(path)]


def follow(error):
    """Gives the command that a message ends with."""
    command = shlex.split(re.search(r"python -m experiments.label.run (.*)", str(error.value))[1])
    name, flag = command
    assert name == "accept"
    experiment(Accept(project=flag.removeprefix("--project=")))


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


DAMAGES = {
    "last line gone": (lambda path: path.write_bytes(b"".join(lines(path)[:-1])), "has [0-9]+ of"),
    "first line gone": (lambda path: path.write_bytes(b"".join(lines(path)[1:])), "has [0-9]+ of"),
    "cut in a line": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "has [0-9]+ of"),
    "emptied": (lambda path: path.write_bytes(b""), "has 0 of"),
    "missing": (os.unlink, "is missing, with"),
    "one vote turned": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"[1, 2]", b"[2, 1]", 1)),
        "has changed",
    ),
    "two lines swapped": (
        lambda path: path.write_bytes(b"".join([lines(path)[n] for n in (1, 0, 2)])),
        "has changed",
    ),
    "note cut": (lambda path: confirmed_file(path).write_bytes(b'{"byt'), "confirmed cannot be"),
    "note of others": (lambda path: confirmed_file(path).write_bytes(b"[]"), "confirmed cannot be"),
    "note binary": (lambda path: confirmed_file(path).write_bytes(b"\xff"), "confirmed cannot be"),
    "note one byte shorter": (
        lambda path: confirmed_file(path).write_bytes(confirmed_file(path).read_bytes()[:-1]),
        "confirmed cannot be",
    ),
    "note absurd": (
        lambda path: confirmed_file(path).write_text('{"bytes": -1, "sha256": ""}'),
        "confirmed cannot be",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_has_gone_is_noticed_by_all_and_the_advice_helps(path, name):
    damage, message = DAMAGES[name]
    damage(path)
    there = path.read_bytes() if path.exists() else None
    with pytest.raises(UsageError, match=message):
        answers.current_answers(path)
    with pytest.raises(UsageError, match=message) as error, open_writer(path):
        pass
    assert (path.read_bytes() if path.exists() else None) == there  # nothing made or moved
    follow(error)
    left = ids(path)
    assert len(left) == (there or b"").count(b"\n")
    with open_writer(path) as file:
        file.append(event(7))
    assert ids(path) == [*left, "e7"]


def test_a_damaged_line_is_named_and_the_advice_helps(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"event_id": "e1"', b'"event_id"; "e1"'))
    with pytest.raises(UsageError, match="has changed") as changed:
        answers.current_answers(path)
    with pytest.raises(UsageError, match=r"answers.jsonl:2: line: .* take this line out") as error:
        follow(changed)
    with pytest.raises(UsageError, match="has changed"):  # nothing was accepted
        answers.current_answers(path)
    path.write_bytes(b"".join(lines(path)[n] for n in (0, 2)))
    follow(error)
    assert ids(path) == ["e0", "e2"]
    path.write_bytes(whole)  # the copy, put back
    with pytest.raises(UsageError, match="has changed") as error:
        answers.current_answers(path)
    follow(error)
    assert ids(path) == ["e0", "e1", "e2"]


def test_a_file_put_back_from_a_copy_goes_on(path):
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(UsageError, match="Put it back from a copy"):
        content_of(path)
    path.write_bytes(whole)
    assert ids(path) == ["e0", "e1", "e2"]


def test_a_note_behind_the_file_is_no_damage(path):
    """Killed between the line and its note."""
    note = confirmed_file(path).read_bytes()
    with open_writer(path) as file:
        file.append(event(3))
    confirmed_file(path).write_bytes(note)
    assert ids(path)[-1] == "e3"
    with open_writer(path):
        pass
    assert json.loads(confirmed_file(path).read_text())["bytes"] == path.stat().st_size


def test_a_file_of_an_older_version_gets_a_note(path):
    confirmed_file(path).unlink()
    assert ids(path) == ["e0", "e1", "e2"]
    with open_writer(path):
        assert json.loads(confirmed_file(path).read_text())["bytes"] == path.stat().st_size


def test_a_killed_writer_leaves_no_note_ahead(path, monkeypatch):
    """The note comes after the line is on the disk, and a note that fails takes the line back."""
    before, note = path.read_bytes(), confirmed_file(path).read_bytes()

    def full(*_):
        assert path.read_bytes() == before + answers.event_line(event(3))
        raise OSError(28, "No space left on device")

    with open_writer(path) as file:
        with monkeypatch.context() as disk:
            disk.setattr(writer, "write_confirmed", full)
            with pytest.raises(NotRecorded, match="No space left"):
                file.append(event(3))
        assert path.read_bytes() == before and confirmed_file(path).read_bytes() == note
        file.append(event(3))
    assert ids(path) == ["e0", "e1", "e2", "e3"]


def test_links_in_the_place_of_locks_and_notes_are_refused(path, tmp_path):
    for name in ("answers.jsonl.lock", "answers.jsonl.confirmed.next", "answers.jsonl.torn"):
        target = tmp_path / "another file"
        target.write_text("precious")
        link = path.with_name(name)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        path.write_bytes(path.read_bytes() + b"torn")
        with pytest.raises(UsageError, match=name), open_writer(path) as file:
            file.append(event(9))
        assert target.read_text() == "precious"
        link.unlink()
