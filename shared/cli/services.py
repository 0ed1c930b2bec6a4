"""`bastide up`, `down` and `status`: the three services as processes of this host."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import signal
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from shared.cli import setup
from shared.cli.connection import Home, Session
from shared.cli.failures import UNAVAILABLE, USAGE, Failure
from shared.cli.supervisor import Process, Readiness, exclusive, readiness
from shared.cli.tools import run_tool, serve_command

_MIGRATE_SECONDS = 120.0
# What a server spends on flushing refusals and closing its stores beyond its drain time, doubled: it drains twice,
# once the calls and once the tasks that outlive them.
_STOP_MARGIN_SECONDS = 10.0

Services = Annotated[
    list[str] | None, typer.Argument(metavar="[SERVICE]...", help=f"Any of {', '.join(setup.SERVICES)}; default all.")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """One service as it is now. Without a pid it is not ours, or not running."""

    service: str
    pid: int | None
    grpc: str
    probes: str
    ready: bool
    problems: dict[str, str]
    certificate_end: str

    @classmethod
    def of(cls, home: Home, name: str) -> _State:
        grpc_at, probes_at = home.addresses(name)
        pid = _process(home, name).pid()
        found = _readiness(home, name)
        if pid is None and not found.ready:
            found = Readiness(ready=False, problems={"process": "does not run"})
        elif pid is None:
            found = Readiness(
                ready=False, problems={"process": f"another one than this set-up's answers at {probes_at}"}
            )
        if ended := _ended(home, name):
            found = Readiness(ready=False, problems={**found.problems, "certificate": ended})
        return cls(
            service=name,
            pid=pid,
            grpc=grpc_at,
            probes=probes_at,
            ready=found.ready,
            problems=found.problems,
            certificate_end=f"{home.certificate_end(name):%Y-%m-%d %H:%M:%SZ}",
        )


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Examples: bastide up; bastide up audit policy-guard; bastide up --foreground")(up)
    app.command(epilog="Example: bastide down model-server")(down)
    app.command()(status)


def up(
    context: typer.Context,
    services: Services = None,
    wait: Annotated[float, typer.Option(min=1, help="Seconds each service has to become ready.")] = 120.0,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and stop them with Ctrl-C.")] = False,
) -> None:
    """Migrate and start services, each once the one before is ready, and leave them running."""
    session = Session.of(context)
    session.home.configuration("audit")
    names = _chosen(services)
    for name in names:
        if ended := _ended(session.home, name):
            raise Failure(f"{name}: its certificate {ended}", title="certificate ended")
    started: list[Process] = []
    if foreground:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with exclusive(session.home.path / "run"):
            running = [name for name in names if _process(session.home, name).pid() is not None]
            if foreground and running:
                raise Failure(f"{', '.join(running)}: started before; bastide down, or leave --foreground away")
            for name in names:
                _start(session, _process(session.home, name), wait, started)
        if foreground:
            session.output.note("running; Ctrl-C stops them")
            _watch(started)
    finally:
        if foreground:
            for process in reversed(started):
                process.stop(drain_seconds=_stop_seconds(session.home, process.name))
    if not foreground:
        _show(session, names)


def down(context: typer.Context, services: Services = None) -> None:
    """Stop services, the last started first: calls may finish, then what is left is killed."""
    session = Session.of(context)
    session.home.configuration("audit")
    outcomes = {}
    with exclusive(session.home.path / "run"):
        for name in reversed(_chosen(services)):
            with session.output.aside.status(f"stopping {name}"):
                outcomes[name] = _process(session.home, name).stop(drain_seconds=_stop_seconds(session.home, name))
            session.output.line(f"{name}: {outcomes[name]}")
    session.output.emit({"services": outcomes})


def status(context: typer.Context) -> None:
    """Show which services run, where, and what keeps them from being ready. Exits with 3 unless all are."""
    session = Session.of(context)
    if not _show(session, setup.SERVICES):
        raise typer.Exit(UNAVAILABLE)


def _start(session: Session, process: Process, wait: float, started: list[Process]) -> None:
    home, name = session.home, process.name
    with session.output.aside.status(f"{name}: migrating") as progress:
        if process.pid() is None:
            # Ports that an earlier run took must not be mistaken for this one's.
            (home.path / name / "ports").unlink(missing_ok=True)
            run_tool(home, name, "migrate", seconds=_MIGRATE_SECONDS)
            progress.update(f"{name}: starting")
            process.start()
            started.append(process)
        progress.update(f"{name}: waiting until it is ready")
        process.wait_ready(_probes(home, name), seconds=wait)


def _ended(home: Home, name: str) -> str:
    """Say that the service's certificate has ended and what to do; empty while it counts."""
    end = home.certificate_end(name)
    return "" if end > dt.datetime.now(dt.UTC) else f"ended at {end:%Y-%m-%d %H:%M:%SZ}: bastide renew"


def _probes(home: Home, name: str) -> Iterator[Readiness]:
    for _ in itertools.count():
        yield _readiness(home, name)


def _readiness(home: Home, name: str) -> Readiness:
    # Before it listens, somebody else's service may answer at the same address.
    if not home.listening(name):
        return Readiness(ready=False, problems={"start": "does not listen yet"})
    return readiness(home.addresses(name)[1])


def _watch(processes: list[Process]) -> None:
    while True:
        for process in processes:
            if process.pid() is None:
                raise Failure(process.tail(), title=f"{process.name} ended")
        time.sleep(0.5)


def _show(session: Session, names: tuple[str, ...]) -> bool:
    states = [_State.of(session.home, name) for name in names]
    session.output.emit({"services": [dataclasses.asdict(state) for state in states]})
    session.output.table(
        *("service", "pid", "grpc", "probes", "certificate ends", "ready", "problems"),
        rows=[
            (
                state.service,
                str(state.pid or "-"),
                state.grpc,
                state.probes,
                state.certificate_end,
                "yes" if state.ready else "no",
                "; ".join(f"{key}: {text}" for key, text in state.problems.items()),
            )
            for state in states
        ],
        empty="no services",
    )
    return all(state.ready for state in states)


def _chosen(services: list[str] | None) -> tuple[str, ...]:
    unknown = sorted(set(services or ()) - set(setup.SERVICES))
    if unknown:
        raise Failure(f"no such service: {', '.join(unknown)}; there are {', '.join(setup.SERVICES)}", exit_code=USAGE)
    return tuple(name for name in setup.SERVICES if not services or name in services)


def _process(home: Home, name: str) -> Process:
    return Process(name, serve_command(home, name), home.path / "run")


def _stop_seconds(home: Home, name: str) -> float:
    return 2 * home.server(name).drain_seconds + _STOP_MARGIN_SECONDS
