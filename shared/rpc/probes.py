"""`/livez`, `/readyz` and `/metrics` over plain HTTP: the one listener without mTLS, for probes and scrapers."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MAX_CONNECTIONS = 32
MAX_SECONDS = 5.0


class _Server(http.server.ThreadingHTTPServer):
    """Holds `MAX_CONNECTIONS` for `MAX_SECONDS` each at most: whoever reaches the port needs no certificate."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Oldest first. Only the serving thread adds, and each connection's own thread takes it away.
        self._open: dict[socket.socket, float] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        for oldest in list(self._open)[: len(self._open) - MAX_CONNECTIONS + 1]:
            # Rather than the new one: a probe asks and is answered at once, and only others stay.
            self._open.pop(oldest, None)
            _cut(oldest)
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called between polls, twice a second."""
        super().service_actions()
        late = time.monotonic() - MAX_SECONDS
        for connection, since in self._open.copy().items():
            if since < late:
                _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a caller went away or was cut."""


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has just ended by itself
        connection.shutdown(socket.SHUT_RDWR)


class Probes:
    """Serves probes from threads of its own, so that a stuck event loop is visible as such."""

    def __init__(self, address: str, problems: Callable[[], Mapping[str, str]], *, alive: Callable[[], bool]) -> None:
        """Listen on `host:port` (port 0: any); `problems` names what keeps the service from being ready.

        Raises OSError naming the address when it cannot be had.

        Both are called on other threads; `alive` says whether the event loop still runs.
        """
        host, _, port = address.rpartition(":")

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = MAX_SECONDS

            def do_GET(self) -> None:
                living = alive()
                found = problems() if living else {"event loop": "stuck"}
                answers = {
                    "/livez": (200, "text/plain", b"ok\n") if living else (503, "text/plain", b"stuck\n"),
                    "/readyz": (
                        503 if found else 200,
                        "application/json",
                        json.dumps({"problems": dict(found)}).encode(),
                    ),
                }
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
                else:
                    self._answer(*answers.get(self.path, (404, "text/plain", b"not found\n")))

            def _answer(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
                """Stay silent: probes come every few seconds."""

        try:
            self._server = _Server((host, int(port)), Handler)
        except OSError as error:
            raise OSError(error.errno, error.strerror, address) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
