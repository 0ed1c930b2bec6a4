"""Both record stores for tests: import the fixtures into a `conftest.py`.

`database_url` is an empty database of each kind; `stores` makes more of the kind at hand, migrated ones fast.
PostgreSQL is a real server, started once a session.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pgserver
import pytest

from shared.records.migrations import migrate


class Stores:
    """Makes databases of one kind; a schema is migrated once and then copied."""

    def __init__(self, kind: str, root: Path, server: pgserver.PostgresServer | None) -> None:
        self.kind = kind
        self._root = root
        self._server = server
        self._count = itertools.count()
        self._templates: dict[Path, str] = {}

    def new(self, script_location: Path | None = None) -> str:
        """Return the URL of a new database, empty or at the head of `script_location`."""
        if script_location is None:
            return self._create(None)
        if script_location not in self._templates:
            url = self._create(None)
            migrate(url, script_location)
            self._templates[script_location] = url
        return self._create(self._templates[script_location])

    def _create(self, template: str | None) -> str:
        name = f"test_{next(self._count)}"
        if self._server is None:
            path = self._root / f"{name}.sqlite"
            if template is not None:
                shutil.copyfile(template.removeprefix("sqlite:///"), path)
            return f"sqlite:///{path}"
        source = f" TEMPLATE {template.split('?')[0].rsplit('/', 1)[1]}" if template else ""
        self._server.psql(f"CREATE DATABASE {name}{source};")
        return str(self._server.get_uri(name))


@pytest.fixture(scope="session")
def sqlite_stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores("sqlite", tmp_path_factory.mktemp("sqlite"), None)


@pytest.fixture(scope="session")
def postgresql_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    root = tmp_path_factory.mktemp("postgresql")
    server = pgserver.get_server(root / "data", cleanup_mode="stop")
    yield Stores("postgresql", root, server)
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest) -> Stores:
    found: Stores = request.getfixturevalue(f"{request.param}_stores")
    return found


@pytest.fixture
def database_url(stores: Stores) -> str:
    return stores.new()
