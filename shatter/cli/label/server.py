"""The server of the local page, on the loopback address only."""

import socket
from collections.abc import Callable

from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from shatter.cli.common.binary import UsageError

LOOPBACK = "127.0.0.1"


def open_server(app: Flask, port: int = 0) -> BaseWSGIServer:
    """Returns a server of the application that listens on the loopback address only.

    Args:
      app: the application of `make_app`.
      port: the port; 0 = a free one.

    Returns:
      The server; `serve_forever` runs it, `server_close` ends it.

    Raises:
      UsageError: if the port cannot be used.
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
        # The server duplicates this descriptor and listens on its own.
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
      app: the application of `make_app`.
      port: the port; 0 = a free one.
      say: called with one line that names the address.

    Raises:
      UsageError: if the port cannot be used.
    """
    server = open_server(app, port)
    say(f"Answer at http://{LOOPBACK}:{server.port}/ (Ctrl-C ends it)")
    try:
        server.serve_forever()
    finally:
        server.server_close()


class _Quiet(WSGIRequestHandler):
    """A request handler that does not print a line for every request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        del code, size
