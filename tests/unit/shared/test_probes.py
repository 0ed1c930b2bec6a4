"""Probes answer from threads of their own and tell a stuck event loop from a live one."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest

from shared.rpc import probes as module
from shared.rpc.probes import MAX_CONNECTIONS, Probes


def get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize(
    ("alive", "problems", "livez", "readyz"),
    [(True, {}, 200, 200), (True, {"audit": "away"}, 200, 503), (False, {}, 503, 503)],
)
def test_probes_say_alive_and_ready_apart(alive: bool, problems: dict[str, str], livez: int, readyz: int) -> None:
    probes = Probes("127.0.0.1:0", lambda: problems, alive=lambda: alive)
    probes.start()
    try:
        assert get(probes.port, "/livez")[0] == livez
        code, body = get(probes.port, "/readyz")
        assert code == readyz
        assert all(name.encode() in body for name in problems)
        assert get(probes.port, "/metrics")[0] == 200
        assert get(probes.port, "/else")[0] == 404
    finally:
        probes.close()


def ended(connection: socket.socket) -> bool:
    """Whether the other side has ended the connection; waits for that for ten seconds."""
    connection.settimeout(10)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_connections_that_say_little_neither_pile_up_nor_keep_probes_out() -> None:
    probes = Probes("127.0.0.1:0", dict, alive=lambda: True)
    probes.start()
    idle = [socket.create_connection(("127.0.0.1", probes.port), timeout=5) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        for connection in idle:
            connection.sendall(b"G")
        assert get(probes.port, "/readyz")[0] == 200
        assert all(ended(connection) for connection in idle[: 2 * MAX_CONNECTIONS])
        assert len(probes._server._open) <= MAX_CONNECTIONS
    finally:
        for connection in idle:
            connection.close()
        probes.close()


def test_a_connection_ends_after_its_time_however_busily_it_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 0.2)
    probes = Probes("127.0.0.1:0", dict, alive=lambda: True)
    probes.start()
    try:
        with socket.create_connection(("127.0.0.1", probes.port), timeout=5) as connection:
            connection.sendall(b"GET /livez HT")
            assert ended(connection)
    finally:
        probes.close()
