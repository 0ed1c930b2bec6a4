"""Probes answer from threads of their own and tell a stuck event loop from a live one."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from shared.rpc.probes import Probes


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
