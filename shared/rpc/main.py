"""The command line that every service has: `serve` (default), `migrate`, `--check-config`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import structlog
from rich.console import Console
from rich.table import Table

from shared import observability
from shared.config import ConfigError, Loaded, Settings, load
from shared.cores import forbid_core_dumps
from shared.errors import Error
from shared.records.migrations import migrate
from shared.rpc.channel import PeerSettings
from shared.rpc.server import ServerSettings


class ServiceSettings(Settings):
    """What every service is configured with, whatever it does."""

    server: ServerSettings = pydantic.Field(description="Listeners, certificates, limits.")
    records: str = pydantic.Field(
        description="Record store: `sqlite:///<path>` or `postgresql://...` (password in a passfile, never here)."
    )
    keys: Path = pydantic.Field(description="Key file of the file key provider, mode 0600.")
    trust: Path = pydantic.Field(description="Trust root: the public keys of statements and decisions.")
    audit: PeerSettings = pydantic.Field(default=PeerSettings(address="127.0.0.1:8441"), description="Audit service.")
    guard: PeerSettings = pydantic.Field(default=PeerSettings(address="127.0.0.1:8442"), description="Policy guard.")


log = structlog.get_logger()

S = TypeVar("S", bound=ServiceSettings)
Command = Callable[[S, list[str]], int]


def main(
    service: str,
    model: type[S],
    serve: Callable[[S], Coroutine[Any, Any, None]],
    *,
    migrations: Path,
    commands: dict[str, Command[S]] | None = None,
) -> int:
    """Run the service named `service` (as in `audit`, `policy_guard`) and return the exit code."""
    forbid_core_dumps()
    parser = argparse.ArgumentParser(prog=f"python -m services.{service}")
    parser.add_argument("--config", type=Path, help=f"TOML file; variables BASTIDE_{service.upper()}_* override it")
    parser.add_argument("--check-config", action="store_true", help="explain every setting and exit")
    parser.add_argument("command", nargs="?", default="serve", choices=["serve", "migrate", *(commands or {})])
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command not in (commands or {}):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    try:
        loaded = load(model, file=arguments.config, prefix=f"BASTIDE_{service.upper()}", environ=os.environ)
    except ConfigError as error:
        print(f"configuration refused:\n{error}", file=sys.stderr)
        return 2
    settings = loaded.settings
    if arguments.check_config:
        _explain(loaded)
        return 0
    observability.configure(settings.server.observability, service=service)
    if commands and arguments.command in commands:
        return commands[arguments.command](settings, rest)
    try:
        if arguments.command == "migrate":
            print(f"schema {migrate(settings.records, migrations)}")
        else:
            asyncio.run(serve(settings))
    except Error as error:
        log.error("refused", command=arguments.command, reason=error.reason, message=error.message)
        return 1
    except OSError as error:
        log.error("refused", command=arguments.command, reason="SYSTEM", message=f"{error.filename}: {error.strerror}")
        return 1
    return 0


def _explain(loaded: Loaded[S]) -> None:
    table = Table("setting", "value", "from", "meaning")
    for value in loaded.values:
        table.add_row(value.key, value.value, value.origin, value.description)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
