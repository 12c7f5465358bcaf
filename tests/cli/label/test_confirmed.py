"""Missing lines that were confirmed are noticed, and the advice in the message works."""

import json
import os
import re
import shlex

import pytest

from shatter.cli.common.binary import UsageError
from shatter.cli.label import answers, writer
from shatter.cli.label.config import AcceptConfig
from shatter.cli.label.confirmed import confirmed_file, content_of
from shatter.cli.label.events import Event, event_line
from shatter.cli.label.imports import import_answers
from shatter.cli.label.queries import TextQuery, write_queries
from shatter.cli.label.run import experiment
from shatter.cli.label.writer import NotRecorded, open_writer


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
    """Runs the command that a message ends with."""
    command = shlex.split(re.search(r"shatter label (.*)", str(error.value))[1])
    name, flag = command
    assert name == "accept"
    experiment(AcceptConfig(project=flag.removeprefix("--project=")))


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


def test_a_flipped_digit_of_the_note_names_both_files(path):
    note = confirmed_file(path)
    text = note.read_text()
    digit = text.index('"sha256": "') + len('"sha256": "')
    flipped = "0" if text[digit] != "0" else "1"
    note.write_text(text[:digit] + flipped + text[digit + 1 :])
    with pytest.raises(
        UsageError, match=r"answers.jsonl has changed .*answers.jsonl.confirmed"
    ) as e:
        answers.current_answers(path)
    follow(e)
    assert ids(path) == ["e0", "e1", "e2"]


@pytest.mark.parametrize("name", ["first line gone", "emptied", "missing", "one vote turned"])
def test_an_import_of_what_has_gone_is_refused_and_the_advice_helps(path, tmp_path, name):
    """Even if no line is left that tells an answer file from a file of preferences."""
    texts = (
        TextQuery("q0", "p", ("a", "b")),
        TextQuery("q1", "p", ("a", "c")),
        TextQuery("q2", "p", ("b", "c")),
    )
    write_queries(path.parent / "queries" / "round_0000.jsonl", texts)
    damage, message = DAMAGES[name]
    damage(path)
    with open_writer(tmp_path / "other" / "answers.jsonl") as file:
        with pytest.raises(UsageError, match=message) as error:
            import_answers(path, tmp_path / "other" / "queries", file)
        follow(error)
        if left := ids(path):
            import_answers(path, tmp_path / "other" / "queries", file)
        assert len(left) == len(file.events)


def test_a_linked_answer_file_is_known_by_the_project(path, tmp_path):
    """Messages name the project's folder, and not the folder that the link points to."""
    elsewhere = tmp_path / "elsewhere" / "kept.jsonl"
    elsewhere.parent.mkdir()
    for name in ("", ".confirmed"):
        path.with_name(path.name + name).rename(elsewhere.with_name(elsewhere.name + name))
    path.symlink_to(elsewhere)
    with open_writer(path) as file:
        file.append(event(3))
        with pytest.raises(UsageError, match="is open for answers"), open_writer(elsewhere):
            pass
    assert ids(path) == ids(elsewhere) == ["e0", "e1", "e2", "e3"]
    elsewhere.write_bytes(b"".join(lines(elsewhere)[:2]))
    with pytest.raises(UsageError, match=r"has [0-9]+ of") as error, open_writer(path):
        pass
    follow(error)
    assert ids(path) == ["e0", "e1"] and path.is_symlink()


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
    with pytest.raises(UsageError, match="Put the file back from a copy"):
        content_of(path)
    path.write_bytes(whole)
    assert ids(path) == ["e0", "e1", "e2"]


def test_a_note_behind_the_file_is_no_damage(path):
    """As after a kill between the line and its note."""
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
    """The note is written after the line; if the note fails, the line is taken back."""
    before, note = path.read_bytes(), confirmed_file(path).read_bytes()

    def full(*_):
        assert path.read_bytes() == before + event_line(event(3))
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
