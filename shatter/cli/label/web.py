"""Several people answer at the same time, on a page that only this machine can open."""

import re
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from shatter.cli.common.binary import UsageError
from shatter.cli.label import asking
from shatter.cli.label.answers import EVENT_ID, ID_FORM, OF_MANY
from shatter.cli.label.asking import Choice, shown_digest
from shatter.cli.label.display import turns
from shatter.cli.label.queries import Asked
from shatter.cli.label.writer import Conflict, NotRecorded, Writer

LOOPBACK = "127.0.0.1"
MAX_BODY = 1 << 16  # bytes of a request
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; "
        "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
    ),
    "X-Content-Type-Options": "nosniff",
}


def make_app(queries: Mapping[str, Asked], writer: Writer, *, seed: int) -> Flask:
    """Returns an application that serves the page and what it asks for.

    - `GET /`: the page;
    - `GET /api/standing?annotator=NAME`: the query to answer now and how far the annotator is;
    - `POST /api/answer` `{annotator, query_id, digest, event_id, choice, seconds}`: records a
      choice, the place of a response from 0, "tie" or "skip"; `digest` is that of the query;
    - `POST /api/undo` `{annotator, event_id, undoes}`: takes the annotator's last event back, which
      the standing names.

    Both posts return the new standing, when the event is on the disk. An event_id that came before
    is recorded once. Status 507: nothing was recorded, for want of space; 409: nothing was, for the
    page showed other texts or another order than what is asked here, or the query was answered, or
    the event undone, in another tab.

    Args:
      queries: what is asked, in order.
      writer: where answers go.
      seed: the seed of the order in which responses are shown.

    Returns:
      The application.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    lock = threading.Lock()  # around the writer and its events

    @app.before_request
    def refuse_other_hosts() -> None:
        # Another site's page may send its visitors here: under its own name, or from its own.
        origin = request.headers.get("Origin")
        is_foreign = origin is not None and origin != f"http://{request.host}"
        if not _HOST.fullmatch(request.host) or is_foreign:
            raise BadRequest(f"open this page as http://{LOOPBACK} and the port")

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description), error.code or 500

    @app.errorhandler(UsageError)
    def not_recorded(error: UsageError) -> tuple[Response, int]:
        kinds = {NotRecorded: 507, Conflict: 409}
        return jsonify(error=str(error)), kinds.get(type(error), 400)

    @app.get("/")
    def index() -> Response:
        return Response(page, mimetype="text/html")

    @app.get("/api/standing")
    def standing() -> Response:
        annotator = asking.annotator_name(request.args.get("annotator", ""))
        with lock:
            return jsonify(_standing(queries, writer, annotator, seed))

    @app.post("/api/answer")
    def answer() -> Response:
        given = _given("annotator", "query_id")
        annotator = asking.annotator_name(given["annotator"])
        query = queries.get(given["query_id"])
        order = query and asking.display_order(query, annotator=annotator, seed=seed)
        if query is None or order is None or given.get("digest") != shown_digest(query, order):
            raise Conflict(
                f"This page showed something else than what is asked here, for {writer.path}: "
                "another project, an earlier round or another order"
            )
        event = asking.answer(
            query,
            _choice(given.get("choice"), len(order)),
            annotator=annotator,
            order=order,
            seconds=_seconds(given.get("seconds")),
            event_id=given["event_id"],
        )
        with lock:
            writer.append(event)
            return jsonify(_standing(queries, writer, annotator, seed))

    @app.post("/api/undo")
    def undo() -> Response:
        given = _given("annotator", "undoes")
        annotator = asking.annotator_name(given["annotator"])
        with lock:
            last = asking.standing(queries, writer.events, annotator).last
            undone = {(e.event_id, e.annotator, e.undoes) for e in writer.events}
            if (given["event_id"], annotator, given["undoes"]) not in undone:
                if last is None or last.event_id != given["undoes"]:
                    raise Conflict("What this page would undo is not your last answer here")
                writer.append(asking.undo(last, event_id=given["event_id"]))
            return jsonify(_standing(queries, writer, annotator, seed))

    return app


def open_server(app: Flask, port: int = 0) -> BaseWSGIServer:
    """Returns a server of the application, on this machine's own address only.

    Args:
      app: of `make_app`.
      port: the port; 0 = a free one.

    Returns:
      The server; `serve_forever` runs it, `server_close` ends it.

    Raises:
      UsageError: if the port cannot be had.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port} cannot be used ({error}): choose another --port, or 0 for a free one"
            ) from error
        listening.listen()
        # The server listens on a descriptor of its own, which it duplicates from this one.
        return make_server(
            LOOPBACK,
            listening.getsockname()[1],
            app,
            threaded=True,
            request_handler=_Quiet,
            fd=listening.fileno(),
        )


def serve(app: Flask, port: int = 0, *, say: Callable[[str], None] = print) -> None:
    """Serves the application until the process is interrupted.

    Args:
      app: of `make_app`.
      port: the port; 0 = a free one.
      say: called with one line, the address.

    Raises:
      UsageError: if the port cannot be had.
    """
    server = open_server(app, port)
    say(f"Answer at http://{LOOPBACK}:{server.port}/ (Ctrl-C ends it)")
    try:
        server.serve_forever()
    finally:
        server.server_close()


class _Quiet(WSGIRequestHandler):
    """No line for every request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        del code, size


def _standing(
    queries: Mapping[str, Asked], writer: Writer, annotator: str, seed: int
) -> dict[str, Any]:
    place = asking.standing(queries, writer.events, annotator)
    query = None
    if place.query is not None:
        order = asking.display_order(place.query, annotator=annotator, seed=seed)
        query = {
            "query_id": place.query.query_id,
            "digest": shown_digest(place.query, order),
            "prompt": turns(place.query.prompt),
            "responses": [turns(place.query.completions[k]) for k in order],
        }
    return {
        "query": query,
        "answered": place.num_answered,
        "skipped": place.num_skipped,
        "queries": place.num_queries,
        "undoes": place.last and place.last.event_id,
        "file": str(writer.path),
    }


def _given(*fields: str) -> dict[str, Any]:
    """Returns the object that was posted, with texts in some fields and the name of an event."""
    try:
        given = request.get_json()  # refuses all but application/json, which no form can send
    except RecursionError as error:
        raise BadRequest("expected a JSON object, found one that is nested too deep") from error
    if not isinstance(given, dict):
        raise BadRequest("expected a JSON object")
    for field in fields:
        text = given.get(field)
        if not isinstance(text, str) or not text.strip() or len(text) > 256:
            raise BadRequest(f"{field}: expected a text, found {str(text)[:80]!r}")
    event_id = given.get("event_id")
    is_id = isinstance(event_id, str) and EVENT_ID.fullmatch(event_id) is not None
    if not is_id or str(event_id).startswith(OF_MANY):  # of those any number may stand
        expected = f"{ID_FORM}, not beginning with {OF_MANY}"
        raise BadRequest(f"event_id: expected {expected}, found {str(event_id)[:80]!r}")
    return given


def _choice(given: Any, num: int) -> Choice:
    is_place = isinstance(given, int) and not isinstance(given, bool) and 0 <= given < num
    if not is_place and given not in ("tie", "skip"):
        expected = f"a number from 0 to {num - 1}, tie or skip"
        raise BadRequest(f"choice: expected {expected}, found {str(given)[:80]!r}")
    return given


def _seconds(given: Any) -> float:
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not 0 <= given < 1e9:
        raise BadRequest(f"seconds: expected a number of at least 0, found {str(given)[:80]!r}")
    return float(given)
