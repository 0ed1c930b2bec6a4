"""Turns the one URL of the configuration into an engine: which driver, which safety settings."""

from __future__ import annotations

import functools
import ipaddress
import os
import ssl
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.records import inline
from shared.records.errors import RecordsMisconfigured

SQLITE_BEGIN = "sqlite_begin"


def parse_location(url: str) -> URL:
    """Return `url` with its asynchronous driver; raises `RecordsMisconfigured`.

    Accepts `sqlite:///path` and `postgresql://...`. The message never repeats the URL, which may hold a
    password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise RecordsMisconfigured("the record store's URL cannot be parsed") from None
    if parsed.drivername in ("sqlite", "sqlite+aiosqlite"):
        if not parsed.database or parsed.database.startswith((":", "file:")) or parsed.query:
            raise RecordsMisconfigured("a SQLite record store is a plain file: sqlite:///path")
        return parsed.set(drivername="sqlite+aiosqlite")
    if parsed.drivername in ("postgresql", "postgresql+asyncpg"):
        return parsed.set(drivername="postgresql+asyncpg")
    raise RecordsMisconfigured("a record store is sqlite:///path or postgresql://...")


def sqlite_path(url: URL) -> Path | None:
    """Return the database's file, or None where it is a server."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def open_engines(url: URL, *, deadline: float, pool_size: int) -> tuple[AsyncEngine, AsyncEngine]:
    """Return the engines to read and to write with; nothing connects yet, a SQLite file is created owner-only.

    Commits are durable when they return: SQLite runs in WAL mode with `synchronous=FULL`, PostgreSQL with
    `synchronous_commit=on`.
    """
    path = sqlite_path(url)
    if path is None:
        engine = _open_postgresql(url, deadline, pool_size)
        return engine, engine
    try:
        # SQLite gives its WAL and shared-memory files the mode of the database.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError:
        raise RecordsMisconfigured("the SQLite file cannot be opened or created") from None
    # Reads may be long and belong on a thread; there is one writer at a time, and what it does is short.
    reading = create_async_engine(url, pool_size=pool_size, max_overflow=0, pool_timeout=deadline)
    writing = create_async_engine(
        url,
        async_creator=functools.partial(inline.connect, str(path)),
        pool_size=1,
        max_overflow=0,
        pool_timeout=deadline,
    )
    _prepare(reading, begin="BEGIN", deadline=deadline)
    _prepare(writing, begin="BEGIN IMMEDIATE", deadline=deadline)
    return reading, writing


def _prepare(engine: AsyncEngine, *, begin: str, deadline: float) -> None:
    busy = int(deadline * 1000)

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        # The driver must not open transactions of its own: `_begin` says which kind is meant.
        if connection.isolation_level is not None:
            connection.isolation_level = None
        cursor = connection.cursor()
        for setting in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
            f"busy_timeout={busy}",
        ):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(SQLITE_BEGIN, begin))


def _open_postgresql(url: URL, deadline: float, pool_size: int) -> AsyncEngine:
    query = dict(url.query)
    files = {name: query.pop(name, None) for name in ("sslrootcert", "sslcert", "sslkey")}
    if any(isinstance(value, tuple) for value in files.values()) or "ssl" in query or "sslmode" in query:
        raise RecordsMisconfigured("PostgreSQL takes sslrootcert, sslcert and sslkey, once each; TLS is not optional")
    arguments: dict[str, Any] = {
        "timeout": deadline,
        "command_timeout": deadline,
        "server_settings": {
            "application_name": "bastide",
            "synchronous_commit": "on",
            "statement_timeout": str(int(deadline * 1000)),
            "idle_in_transaction_session_timeout": str(int(deadline * 4000)),
        },
    }
    if not _is_local(str(query.get("host", url.host or ""))):
        arguments["ssl"] = _tls(**{name: str(value) if value else None for name, value in files.items()})
    return create_async_engine(
        url.set(query=query),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=deadline,
        pool_pre_ping=True,
        connect_args=arguments,
    )


def _is_local(host: str) -> bool:
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(sslrootcert: str | None, sslcert: str | None, sslkey: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=sslrootcert)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if sslcert:
            context.load_cert_chain(sslcert, sslkey)
    except (OSError, ssl.SSLError):
        raise RecordsMisconfigured("PostgreSQL's TLS files cannot be read") from None
    return context
