import errno
import hashlib
import json
import os
import re
import threading
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("flask", reason="the page needs flask: pip install 'shatter-lm[web]'")

from shatter.cli.common.binary import UsageError
from shatter.cli.label import answers, asking, web
from shatter.cli.label.queries import TextQuery
from shatter.cli.label.server import open_server, serve
from shatter.cli.label.writer import open_writer

IDS = [f"r0000-q{n:03}" for n in range(5)]
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def file(tmp_path):
    with open_writer(tmp_path / "answers.jsonl") as writer:
        yield writer


@pytest.fixture
def app(queries, file):
    return web.make_app(queries, file, seed=3)


@pytest.fixture
def ask(app):
    """`ask(path, posted) -> (status, object)`."""
    client = app.test_client()

    def send(path, posted=None, **options):
        options = {"base_url": ADDRESS} | options
        if posted is None:
            response = client.get(path, **options)
        else:
            response = client.post(path, json=posted, **options)
        return response.status_code, response.get_json()

    return send


def choice(number, chosen, query_id=IDS[0], annotator="Ann", **more):
    more = {"seconds": 1.5, "digest": digest_of(query_id, annotator.strip())} | more
    posted = {"annotator": annotator, "query_id": query_id, "event_id": f"e{number}"}
    return posted | {"choice": chosen} | more


def digest_of(query_id, annotator, seed=3):
    """Returns the digest of what the page shows, computed independently."""
    n = int(query_id[-3:])
    texts = tuple(f"response {n}.{k}" for k in range(3 if n == 2 else 2))
    order = asking.display_order(TextQuery(query_id, "", texts), annotator=annotator, seed=seed)
    shown = json.dumps([f"prompt {n}", [texts[k] for k in order]])
    return hashlib.sha256(shown.encode()).hexdigest()


def undo(name, undoes):
    return {"annotator": "Ann", "event_id": name, "undoes": undoes}


def standing(ask, annotator="Ann"):
    status, found = ask(f"/api/standing?annotator={annotator}")
    assert status == 200
    return found


def test_standing_shows_responses_in_the_order_of_the_terminal(ask, queries):
    found = standing(ask)
    order = asking.display_order(queries[IDS[0]], annotator="Ann", seed=3)
    assert found["query"] == {
        "query_id": IDS[0],
        "digest": digest_of(IDS[0], "Ann"),
        "prompt": [["", "prompt 0"]],
        "responses": [[["", f"response 0.{k}"]] for k in order],
    }
    assert [found[name] for name in ("answered", "skipped", "queries")] == [0, 0, 5]
    assert found["undoes"] is None


def test_choices_are_on_the_disk_when_the_next_query_comes(ask, file, queries):
    for n, chosen in enumerate([1, "tie", 2, "skip", 0]):
        status, found = ask("/api/answer", choice(n, chosen, IDS[n]))
        assert status == 200
        assert (found["query"] or {"query_id": None})["query_id"] == [*IDS, None][n + 1]
        assert len(answers.read_events(file.path)) == n + 1
    assert (found["answered"], found["skipped"], found["undoes"]) == (4, 1, "e4")
    events = answers.read_events(file.path)
    orders = [asking.display_order(query, annotator="Ann", seed=3) for query in queries.values()]
    for event, chosen, order in zip(events, [1, "tie", 2, "skip", 0], orders, strict=True):
        assert event.order == order and event.seconds == 1.5 and event.time
        if isinstance(chosen, int):
            assert event.ranks == tuple(1 if k == order[chosen] else 2 for k in range(len(order)))
    assert events[1].ranks == (1, 1) and events[3].event == "skip"


def test_the_same_event_id_is_recorded_once(ask, file):
    for _ in range(3):
        status, found = ask("/api/answer", choice(0, 1, seconds=2))
        assert status == 200 and found["query"]["query_id"] == IDS[1]
    status, found = ask("/api/answer", choice(0, 0))
    assert status == 409 and "'e0' already" in found["error"]
    for _ in range(2):
        status, found = ask("/api/undo", undo("u", "e0"))
        assert status == 200 and found["query"]["query_id"] == IDS[0] and not found["undoes"]
    assert [event.event for event in answers.read_events(file.path)] == ["answer", "undo"]


def test_undo_sent_twice_undoes_one(ask, file):
    ask("/api/answer", choice(0, 1))
    ask("/api/answer", choice(1, 1, IDS[1]))
    for _ in range(2):
        found = ask("/api/undo", undo("u", "e1"))[1]
        assert (found["query"]["query_id"], found["answered"]) == (IDS[1], 1)
    found = ask("/api/undo", undo("v", "e0"))[1]
    assert found["query"]["query_id"] == IDS[0]
    for undoes in ("e0", "e1", "e9"):  # of another tab, or another project's page
        status, found = ask("/api/undo", undo("w", undoes))
        assert status == 409 and "is not your last answer here" in found["error"]
    assert len(answers.read_events(file.path)) == 4


def test_an_undo_under_the_name_of_another_event_is_refused(ask, file):
    ask("/api/answer", choice(0, 1))
    ask("/api/answer", choice(1, 1, annotator="Bo"))
    assert ask("/api/undo", undo("e0", "e0"))[0] == 409  # the id is taken by an answer
    assert ask("/api/undo", undo("u", "e0"))[0] == 200
    for posted in (undo("u", "e1"), undo("u", "e1") | {"annotator": "Bo"}, undo("e1", "e0")):
        assert ask("/api/undo", posted)[0] == 409
    assert ask("/api/undo", undo("u", "e0"))[0] == 200  # the same once more
    assert [event.event for event in answers.read_events(file.path)] == ["answer", "answer", "undo"]


def test_everybody_has_their_own_progress(ask, file):
    ask("/api/answer", choice(0, 0))
    ask("/api/answer", choice(1, 1, annotator=" Bo "))
    ask("/api/answer", choice(2, "skip", IDS[1], annotator="Bo"))
    assert (standing(ask)["answered"], standing(ask, "Bo")["skipped"]) == (1, 1)
    ask("/api/undo", undo("u", "e0"))
    assert standing(ask)["answered"] == 0 and standing(ask, "Bo")["answered"] == 1
    (answer,) = answers.current_answers(file.path)
    assert answer.annotator == "Bo"


@pytest.mark.slow
def test_answers_at_the_same_time(app, file, queries):
    """With thirty people in as many threads every line is whole and every answer there once."""
    failed = []

    def person(annotator):
        client = app.test_client()
        for n, query_id in enumerate(IDS):
            posted = choice(f"{annotator}-{n}", n % 2, query_id, annotator)
            for _ in range(2):
                response = client.post("/api/answer", json=posted, base_url=ADDRESS)
                failed.extend([response.get_json()] * (response.status_code != 200))

    threads = [threading.Thread(target=person, args=(f"A{n}",)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = answers.current_answers(file.path)
    assert len(found) == len({(one.annotator, one.query_id) for one in found}) == 150
    answers.check_known(found, queries)


def test_a_full_disk_is_507_and_can_be_tried_again(ask, file, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = standing(ask)
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        status, found = ask("/api/answer", choice(0, 1))
        assert status == 507 and "No space left on device. This answer was" in found["error"]
        assert standing(ask) == before and file.path.read_bytes() == b""
    assert ask("/api/answer", choice(0, 1))[0] == 200
    assert len(answers.read_events(file.path)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotator": "  "}, "annotator: expected a text"),
        ({"annotator": "a\nb"}, "1 to 64 printable characters"),
        ({"annotator": "\ud800"}, "1 to 64 printable characters"),
        ({"event_id": None}, "event_id: expected 1 to 128 letters, digits"),
        ({"event_id": " "}, "event_id: expected 1 to 128 letters"),
        ({"event_id": "\ud800"}, "event_id: expected 1 to 128 letters"),
        ({"event_id": "a/b"}, "event_id: expected 1 to 128 letters"),
        ({"event_id": "-a"}, "event_id: expected 1 to 128 letters"),
        ({"event_id": "import-a"}, "not beginning with import-, found 'import-a'"),
        ({"event_id": "e" * 129}, "event_id: expected 1 to 128 letters"),
        ({"query_id": ["q"]}, "query_id: expected a text"),
        ({"choice": 2}, "choice: expected a number from 0 to 1, tie or skip, found '2'"),
        ({"choice": -1}, "choice: expected a number"),
        ({"choice": True}, "choice: expected a number"),
        ({"choice": [0]}, "choice: expected a number"),
        ({"seconds": -1}, "seconds: expected a number of at least 0"),
        ({"seconds": float("nan")}, "seconds: expected a number"),
    ],
)
def test_bad_requests_record_nothing(ask, file, change, message):
    status, found = ask("/api/answer", choice(0, 1) | change)
    assert status == 400 and message in found["error"]
    assert file.path.read_bytes() == b""


@pytest.mark.parametrize(
    "change",
    [
        {"query_id": "other"},  # another project's page
        {"query_id": "\ud800"},
        {"query_id": IDS[1]},  # the same project, another round
        {"digest": None},
        {"digest": 7},
        {"digest": digest_of(IDS[0], "Ann", seed=7)},  # the same texts in another order
        {"annotator": "E"},  # this annotator is shown another order
    ],
)
def test_a_page_that_shows_something_else_records_nothing(ask, file, change):
    assert digest_of(IDS[0], "E") != digest_of(IDS[0], "Ann") != digest_of(IDS[0], "Ann", seed=7)
    status, found = ask("/api/answer", choice(0, 1) | change)
    assert status == 409 and "showed something else than what is asked here" in found["error"]
    assert file.path.read_bytes() == b""


def test_one_answer_a_query_and_annotator_in_however_many_tabs(ask, file):
    assert ask("/api/answer", choice("tab1", 0))[0] == 200
    for chosen in (0, 1, "tie", "skip"):
        status, found = ask("/api/answer", choice(f"tab2-{chosen}", chosen))
        assert status == 409 and "'Ann' has answered or skipped query" in found["error"]
    assert ask("/api/answer", choice("bo", 1, annotator="Bo"))[0] == 200
    assert ask("/api/answer", choice("s1", "skip", IDS[1]))[0] == 200
    assert ask("/api/answer", choice("s2", 0, IDS[1]))[0] == 409
    assert ask("/api/undo", undo("u1", "es1"))[0] == 200
    assert ask("/api/answer", choice("s3", 0, IDS[1]))[0] == 200
    found = [(one.annotator, one.event_id) for one in answers.current_answers(file.path)]
    assert found == [("Ann", "etab1"), ("Bo", "ebo"), ("Ann", "es3")]


def test_answers_know_the_texts_they_are_about(ask, file, queries):
    ask("/api/answer", choice(0, 0))
    (answer,) = answers.current_answers(file.path)
    answers.check_known([answer], queries)
    other = queries | {IDS[0]: queries[IDS[0]]._replace(prompt="another")}
    with pytest.raises(UsageError, match=r"answers.jsonl:1: texts: expected an answer about"):
        answers.check_known([answer], other)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 60_000, 400),
        (b'{"annotator": ' * 4_000, 400),
        (b'{"seconds": ' + b"9" * 5_000 + b"}", 400),
        (b" " * (web.MAX_BODY + 1), 413),
        (json.dumps(choice(0, 1, annotator="A" * web.MAX_BODY)).encode(), 413),
        (b"\xff\xfe", 400),
    ],
)
def test_bodies_that_are_too_large_or_too_deep(app, file, body, status):
    response = app.test_client().post(
        "/api/answer", data=body, content_type="application/json", base_url=ADDRESS
    )
    assert response.status_code == status and response.get_json()["error"]
    assert file.path.read_bytes() == b""


def test_odd_names_are_read_back(ask, file):
    ask("/api/answer", choice(0, 1, annotator="Zoë 🦊"))
    (answer,) = answers.current_answers(file.path)
    assert answer.annotator == "Zoë 🦊"


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "http://evil.example:8000"},  # a name that leads to this machine
        {"base_url": "http://127.0.0.1.evil.example"},
        {"base_url": "http://192.168.0.7:8000"},
        {"headers": {"Origin": "http://evil.example"}},
        {"headers": {"Origin": "null"}},
        {"headers": {"Origin": "http://127.0.0.1:9000"}},
    ],
)
def test_other_hosts_and_origins_are_refused(ask, file, options):
    for path, posted in (("/", None), ("/api/answer", choice(0, 1))):
        status, found = ask(path, posted, **options)
        assert status == 400 and "open this page as http://127.0.0.1" in found["error"]
    assert file.path.read_bytes() == b""


def test_this_machine_is_welcome(ask):
    for base_url in (ADDRESS, "http://localhost:8000", "http://127.0.0.1"):
        options = {"base_url": base_url, "headers": {"Origin": base_url}}
        assert ask("/api/answer", choice(0, 1), **options)[0] == 200


def test_forms_of_other_sites_are_refused(app, file):
    client = app.test_client()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = client.post(
            "/api/answer", data=json.dumps(choice(0, 1)), content_type=kind, base_url=ADDRESS
        )
        assert response.status_code == 415
    for body, status in ((b"{", 400), (b"[1]", 400)):
        response = client.post(
            "/api/answer", data=body, content_type="application/json", base_url=ADDRESS
        )
        assert response.status_code == status and response.get_json()["error"]
    assert client.get("/api/nothing", base_url=ADDRESS).get_json()["error"]
    assert file.path.read_bytes() == b""


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_is_one_file(app):
    response = app.test_client().get("/", base_url=ADDRESS)
    text = response.get_data(as_text=True)
    assert response.status_code == 200 and response.mimetype == "text/html"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert response.headers["Cache-Control"] == "no-store"
    page = _Page()
    page.feed(text)
    assert page.addresses == ["data:,"]
    assert not re.search(r"https?:|@import|url\(|innerHTML|outerHTML|insertAdjacentHTML", text)


def test_the_page_is_beside_the_module():
    """The page is where the package data puts it."""
    assert Path(web.__file__).with_name("page.html").is_file()


def test_server_is_on_this_machine_only(app, capfd):
    server = open_server(app)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert server.host == "127.0.0.1" and server.port > 0
        assert server.socket.getsockname() == ("127.0.0.1", server.port)
        address = f"http://127.0.0.1:{server.port}/api/standing?annotator=Ann"
        with urllib.request.urlopen(address, timeout=10) as response:
            assert json.load(response)["query"]["query_id"] == IDS[0]
        with pytest.raises(UsageError, match=f"port {server.port} cannot be used"):
            open_server(app, server.port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(UsageError, match="port 70000 cannot be used"):
        open_server(app, 70000)
    assert capfd.readouterr() == ("", "")


def test_serve_says_where_and_ends_when_interrupted(app, monkeypatch):
    said = []

    def interrupted(self, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", interrupted)
    serve(app, say=said.append)
    assert re.fullmatch(r"Answer at http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)", *said)
