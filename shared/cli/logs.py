"""`bastide audit`: reading the record, and verifying the published log offline."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bastide.audit.v1 import audit_pb2, record_pb2
from shared.cli.connection import AUDIT, LOG, Session
from shared.cli.failures import USAGE, Failure
from shared.cli.leaf import Leaf
from shared.cli.render import moment, name_of, one_line
from shared.errors import Error
from shared.transparency.checkpoint import Checkpoint, verify_checkpoint
from shared.transparency.directory import verify_directory
from shared.transparency.errors import Malformed
from shared.transparency.note import MAX_NOTE_BYTES, Verifier

_UNCOMPARED = """Only a checkpoint that you kept shows that nobody rewrote or cut the whole log together with its
signature: `bastide audit checkpoint > FILE` today, `bastide audit verify --checkpoint FILE` later."""
_KIND = "RECORD_KIND_"
_COLUMNS = ("entry", "at", "kind", "method", "outcome", "who", "decision")

Kind = Annotated[list[str] | None, typer.Option(metavar="KIND", help="For example completed, denied; repeat for more.")]


def register(app: typer.Typer) -> typer.Typer:
    """Add the commands and return their group."""
    group = typer.Typer(no_args_is_help=True, help="What happened, and proof of it.")
    group.command("list", epilog="Example: bastide audit list --kind denied --since 2026-11-01")(list_records)
    group.command("show", epilog="Example: bastide audit show 41")(show)
    group.command("tail")(tail)
    group.command("checkpoint")(checkpoint)
    group.command("verify", epilog="Example, anywhere: bastide audit verify ./log --key log.vkey")(verify)
    app.add_typer(group, name="audit")
    return group


def list_records(
    context: typer.Context,
    *,
    kind: Kind = None,
    call: Annotated[str, typer.Option(help="Call id.")] = "",
    decision: Annotated[str, typer.Option(help="Decision id.")] = "",
    tenant: Annotated[str, typer.Option(help="Tenant.")] = "",
    method: Annotated[str, typer.Option(help="Full method name, /package.Service/Method.")] = "",
    since: Annotated[dt.datetime | None, typer.Option(help="Appended at or after, UTC.")] = None,
    until: Annotated[dt.datetime | None, typer.Option(help="Appended before, UTC.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
) -> None:
    """List entries of the log, newest first."""
    session = Session.of(context)
    request = audit_pb2.ListRecordsRequest(filter=_filter(kind), page_size=min(limit, 500))
    wanted = request.filter
    wanted.call_id, wanted.decision_id, wanted.tenant, wanted.method = call, decision, tenant, method
    for field, time in ((wanted.since, since), (wanted.until, until)):
        if time is not None:
            field.FromDatetime(time)
    response = session.pages(AUDIT, "ListRecords", request, "entries", limit=limit)
    session.output.emit(response)
    session.output.table(*_COLUMNS, rows=[_row(entry) for entry in response.entries], empty="no entries")


def show(context: typer.Context, index: Annotated[int, typer.Argument(min=0, help="Position in the log.")]) -> None:
    """Show one entry: what it says in plain words, then the leaf itself."""
    session = Session.of(context)
    response = session.ask(AUDIT, "GetRecord", audit_pb2.GetRecordRequest(index=index))
    leaf = Leaf.parse(response.entry.leaf)
    if session.output.emit({"index": index, "leaf": leaf.document, "proof": response.proof}):
        return
    session.output.facts([("entry", str(index)), *leaf.facts()])
    session.output.line("\n" + json.dumps(leaf.document, indent=2, ensure_ascii=False), style="dim")


def tail(
    context: typer.Context,
    from_entry: Annotated[int | None, typer.Option("--from", min=0, help="First entry; default: the next.")] = None,
    kind: Kind = None,
) -> None:
    """Show entries as they are appended, until Ctrl-C. With --json, one document a line."""
    session = Session.of(context)
    session.run(_tail(session, from_entry, _filter(kind)))


async def _tail(session: Session, index: int | None, wanted: audit_pb2.RecordFilter) -> None:
    request = audit_pb2.TailRecordsRequest(from_index=index, filter=wanted)
    # The server ends a stream at its longest; go on behind the last entry seen.
    while True:
        async with contextlib.aclosing(session.stream(AUDIT, "TailRecords", request)) as responses:
            async for response in responses:
                request.from_index = response.entry.index + 1
                if not session.output.emit(response.entry):
                    session.output.line("  ".join(map(one_line, _row(response.entry))))


def checkpoint(context: typer.Context) -> None:
    """Print the newest signed checkpoint of the log. Keep it: a later log that disagrees was rewritten."""
    session = Session.of(context)
    response = session.ask(LOG, "GetCheckpoint", audit_pb2.GetCheckpointRequest(), public=True)
    if not session.output.emit(response):
        session.output.line(response.checkpoint.rstrip("\n"))


def verify(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Published log; default: the set-up's.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The log's public key; default: the set-up's.")] = None,
    kept: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="A checkpoint that you kept: the log must be what it was then, and more."),
    ] = None,
) -> None:
    """Recompute the whole log offline, from its entries up, and compare it with what the log signed."""
    session = Session.of(context)
    path = directory or session.home.path / "audit" / "log"
    with session.output.aside.status("recomputing the log") as progress:

        def count(index: int, _leaf: bytes) -> None:
            if index % 1000 == 0:
                progress.update(f"recomputing the log: {index:,} entries")

        log_key = read_key(session, key)
        if not any((path / name).exists() for name in ("checkpoint", "tile")):
            raise Failure(f"{path} holds no published log", exit_code=USAGE)
        before = None if kept is None else _kept(kept, log_key)
        try:
            found = verify_directory(path, log_key, count, kept=before)
        except Error as error:
            raise Failure(
                f"{path}: {error.message}\nThe log is damaged or was changed here. Do not trust what stands behind it.",
                title="the log does NOT verify",
            ) from None
    at = found.checkpoint
    document = {
        "verified": True,
        "origin": at.origin,
        "size": at.size,
        "root": at.root.hex(),
        "tiles": found.tiles,
        "bundles": found.bundles,
        "extends": None if before is None else before.size,
    }
    if session.output.emit(document):
        return
    session.output.line(f"The log verifies: {at.size:,} entries of {at.origin}.", style="bold green")
    session.output.line(
        f"All {found.bundles:,} bundles of entries and {found.tiles:,} tiles were read and hashed; they give the very "
        f"root that the log signed:\n{at.root.hex()}\n{_UNCOMPARED if before is None else _extends(before)}"
    )


def _kept(path: Path, vkey: str) -> Checkpoint:
    """Return the checkpoint in a file. Raises Failure where the log did not sign it, OSError."""
    try:
        with path.open("rb") as file:
            return verify_checkpoint(file.read(MAX_NOTE_BYTES + 1).decode(), Verifier.parse(vkey))
    except (Error, UnicodeDecodeError):
        raise Failure(f"{path} holds no checkpoint that this log's key signed", exit_code=USAGE) from None


def _extends(before: Checkpoint) -> str:
    return f"Its first {before.size:,} entries are those of the checkpoint that you kept: none was changed or removed."


def read_key(session: Session, path: Path | None) -> str:
    """Return the log's public key (vkey) from a file, by default the set-up's."""
    file = path or session.home.log_key
    try:
        text = file.read_text(encoding="utf-8").strip()
        Verifier.parse(text)
    except (Malformed, UnicodeDecodeError):
        raise Failure(f"{file} holds no public key of a log (`<name>+<id>+<base64>`)", exit_code=USAGE) from None
    return text


def _filter(kinds: list[str] | None) -> audit_pb2.RecordFilter:
    wanted = audit_pb2.RecordFilter()
    for kind in kinds or ():
        try:
            wanted.kinds.append(record_pb2.RecordKind.Value(_KIND + kind.upper()))
        except ValueError:
            known = ", ".join(name.removeprefix(_KIND).lower() for name in record_pb2.RecordKind.keys()[1:])
            raise Failure(f"no such kind: {kind}; there are {known}", exit_code=USAGE) from None
    return wanted


def _row(entry: Any) -> tuple[str, ...]:
    return (
        str(entry.index),
        moment(entry.appended_at),
        name_of(record_pb2.RecordKind, entry.kind, _KIND),
        entry.method.rpartition(".")[2],
        entry.reason,
        entry.pseudonym[:12] or "-",
        entry.decision_id or "-",
    )
