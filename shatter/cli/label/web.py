"""A local page on which several people answer at the same time."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import BadRequest, HTTPException, SecurityError

from shatter.cli.common.binary import UsageError
from shatter.cli.label import asking
from shatter.cli.label.asking import Choice, shown_digest
from shatter.cli.label.display import turns
from shatter.cli.label.events import EVENT_ID, ID_FORM, OF_MANY
from shatter.cli.label.queries import TextQuery
from shatter.cli.label.server import LOOPBACK
from shatter.cli.label.writer import Conflict, NotRecorded, Writer

HOSTS = [LOOPBACK, "localhost"]
MAX_BODY = 1 << 16  # bytes of a request
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; "
        "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
    ),
    "X-Content-Type-Options": "nosniff",
}


def make_app(queries: Mapping[str, TextQuery], writer: Writer, *, seed: int) -> Flask:
    """Returns the application that serves the page and records what people choose on it.

    - `GET /`: the page;
    - `GET /api/standing?annotator=NAME`: the query to answer now and how far the annotator is;
    - `POST /api/answer` `{annotator, query_id, digest, event_id, choice, seconds}`: records a
      choice: the position of a response, from 0, or "tie" or "skip". `digest` is the query's;
    - `POST /api/undo` `{annotator, event_id, undoes}`: takes back the annotator's last event, whose
      id is `undoes` of the standing.

    Both posts return the new standing once the event is on the disk. An event_id that was posted
    before is recorded once. Statuses of posts that record nothing: 507 if the disk is full; 409 if
    the page showed other texts or another order than this application asks about, or if the query
    was answered, or the event undone, in another tab.

    Args:
      queries: all queries, in order.
      writer: records the answers.
      seed: the seed of the order in which responses are shown.

    Returns:
      The application.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.config["TRUSTED_HOSTS"] = HOSTS  # another site's name may be made to lead to this machine
    _add_protection(app)
    _add_errors(app)
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    lock = threading.Lock()  # around the writer and its events

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
        posted = _posted("annotator", "query_id")
        annotator = asking.annotator_name(posted["annotator"])
        query = queries.get(posted["query_id"])
        order = query and asking.display_order(query, annotator=annotator, seed=seed)
        if query is None or order is None or posted.get("digest") != shown_digest(query, order):
            raise Conflict(
                f"This page showed something else than what is asked here, for {writer.path}: "
                "another project, an earlier round or another order"
            )
        event = asking.answer(
            query,
            _choice(posted.get("choice"), len(order)),
            annotator=annotator,
            order=order,
            seconds=_seconds(posted.get("seconds")),
            event_id=posted["event_id"],
        )
        with lock:
            writer.append(event)
            return jsonify(_standing(queries, writer, annotator, seed))

    @app.post("/api/undo")
    def undo() -> Response:
        posted = _posted("annotator", "undoes")
        annotator = asking.annotator_name(posted["annotator"])
        with lock:
            last = asking.progress_of(queries, writer.events, annotator).last
            undone = {(e.event_id, e.annotator, e.undoes) for e in writer.events}
            if (posted["event_id"], annotator, posted["undoes"]) not in undone:
                if last is None or last.event_id != posted["undoes"]:
                    raise Conflict("What this page would undo is not your last answer here")
                writer.append(asking.undo(last, event_id=posted["event_id"]))
            return jsonify(_standing(queries, writer, annotator, seed))

    return app


def _add_protection(app: Flask) -> None:
    """Answers requests from pages of other sites with an error; adds headers to every response."""

    @app.before_request
    def refuse_other_origins() -> None:
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{request.host}":
            raise SecurityError()

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response


def _add_errors(app: Flask) -> None:
    """Returns errors as JSON, each with its status."""

    @app.errorhandler(SecurityError)
    def untrusted(error: SecurityError) -> tuple[Response, int]:
        return jsonify(error=f"open this page as http://{LOOPBACK} and the port"), error.code or 400

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description), error.code or 500

    @app.errorhandler(UsageError)
    def not_recorded(error: UsageError) -> tuple[Response, int]:
        statuses = {NotRecorded: 507, Conflict: 409}
        return jsonify(error=str(error)), statuses.get(type(error), 400)


def _standing(
    queries: Mapping[str, TextQuery], writer: Writer, annotator: str, seed: int
) -> dict[str, Any]:
    """Returns an annotator's progress and the query to answer now, as the page reads them."""
    progress = asking.progress_of(queries, writer.events, annotator)
    query = None
    if progress.query is not None:
        order = asking.display_order(progress.query, annotator=annotator, seed=seed)
        query = {
            "query_id": progress.query.query_id,
            "digest": shown_digest(progress.query, order),
            "prompt": turns(progress.query.prompt),
            "responses": [turns(progress.query.completions[k]) for k in order],
        }
    return {
        "query": query,
        "answered": progress.num_answered,
        "skipped": progress.num_skipped,
        "queries": progress.num_queries,
        "undoes": progress.last and progress.last.event_id,
        "file": str(writer.path),
    }


def _posted(*fields: str) -> dict[str, Any]:
    """Returns the posted object, after checking its event_id and that `fields` are texts."""
    try:
        posted = request.get_json()  # accepts application/json only, which no form can send
    except RecursionError as error:
        raise BadRequest("expected a JSON object, found one that is nested too deep") from error
    if not isinstance(posted, dict):
        raise BadRequest("expected a JSON object")
    for field in fields:
        text = posted.get(field)
        if not isinstance(text, str) or not text.strip() or len(text) > 256:
            raise BadRequest(f"{field}: expected a text, found {str(text)[:80]!r}")
    event_id = posted.get("event_id")
    is_id = isinstance(event_id, str) and EVENT_ID.fullmatch(event_id) is not None
    if not is_id or str(event_id).startswith(OF_MANY):  # because any number of those may stand
        expected = f"{ID_FORM}, not beginning with {OF_MANY}"
        raise BadRequest(f"event_id: expected {expected}, found {str(event_id)[:80]!r}")
    return posted


def _choice(value: Any, num: int) -> Choice:
    is_position = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < num
    if not is_position and value not in ("tie", "skip"):
        expected = f"a number from 0 to {num - 1}, tie or skip"
        raise BadRequest(f"choice: expected {expected}, found {str(value)[:80]!r}")
    return value


def _seconds(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1e9:
        raise BadRequest(f"seconds: expected a number of at least 0, found {str(value)[:80]!r}")
    return float(value)
