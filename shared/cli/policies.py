"""`bastide policy`: checking a bundle offline, and its life: proposed, activated by a second person, rolled back."""

from __future__ import annotations

import enum
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from bastide.policy_guard.v1 import policy_pb2
from shared.cli.connection import POLICY, Session
from shared.cli.failures import REFUSED, Failure
from shared.cli.render import moment, name_of
from shared.cli.tools import ask_tool

# A bundle is checked, tested and probed before it is kept or served.
_CHECK_SECONDS = 120.0
_GUARD = "policy-guard"


class Question(enum.StrEnum):
    """What policies are asked."""

    ACCESS = "access"
    INFERENCE = "inference"
    IDENTITY = "identity"


Directory = Annotated[
    Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Folder of policies and their tests.")
]
Name = Annotated[str, typer.Argument(metavar="REVISION", help="revisions/<digest>, or the digest.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="The rules, as Rego bundles with two-person activation.")
    group.command("check", epilog="Example: bastide policy check ./policies")(check)
    group.command("test")(test)
    group.command("eval", epilog="Example: bastide policy eval ./policies access input.json")(evaluate)
    group.command("recover", epilog="Example: bastide policy recover ./policies --by ada@example.org")(recover)
    group.command("list")(list_revisions)
    group.command("show")(show)
    group.command("propose", epilog="Example: bastide policy propose ./policies --note 'allow drafting'")(propose)
    group.command("activate")(activate)
    group.command("rollback")(rollback)
    app.add_typer(group, name="policy")


def check(context: typer.Context, directory: Directory) -> None:
    """Check a folder of policies as a proposal would be, offline: parse, lint, schema, tests, samples, lifecycle."""
    session = Session.of(context)
    with session.output.aside.status("checking"):
        found = _ask_offline(session, "check", str(directory))
    if not session.output.emit(found):
        session.output.facts(
            [("revision", found["revision"]), ("engine", found["engine"]), ("unit tests", str(found["tests"]))]
        )
    _end(session, found["problems"], "may be proposed")


def test(context: typer.Context, directory: Directory) -> None:
    """Run the unit tests of a folder of policies, offline, with coverage."""
    session = Session.of(context)
    with session.output.aside.status("testing"):
        found = _ask_offline(session, "test", str(directory))
    if not session.output.emit(found):
        session.output.facts(
            [("unit tests", str(len(found["tests"]))), ("lines not covered", "\n".join(map(str, found["uncovered"])))]
        )
    _end(session, found["problems"], "all tests pass")


def evaluate(
    context: typer.Context,
    directory: Directory,
    question: Annotated[Question, typer.Argument(help="Which of the guard's questions.")],
    document: Annotated[Path, typer.Argument(metavar="INPUT", exists=True, dir_okay=False, help="JSON input.")],
) -> None:
    """Ask a folder of policies one question, offline."""
    session = Session.of(context)
    found = _ask_offline(session, "eval", str(directory), question.value, str(document))
    if not session.output.emit(found):
        session.output.line(json.dumps(found, indent=2, ensure_ascii=False))


def recover(
    context: typer.Context,
    directory: Directory,
    by: Annotated[str, typer.Option(metavar="NAME", help="Who does this, for the record.")],
) -> None:
    """On the guard's host, with the guard down: put a folder of policies in force without a decision. Recorded."""
    session = Session.of(context)
    with session.output.aside.status("checking and recovering"):
        found = ask_tool(session.home, _GUARD, "recover", str(directory), "--by", by, seconds=_CHECK_SECONDS)
    session.output.emit(found)
    _end(session, found.get("problems", []), f"{found.get('revision')} is in force; next: bastide up policy-guard")


def list_revisions(
    context: typer.Context, limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50
) -> None:
    """List revisions, newest first."""
    session = Session.of(context)
    response = session.pages(POLICY, "ListRevisions", policy_pb2.ListRevisionsRequest(), "revisions", limit=limit)
    session.output.emit(response)
    session.output.table(
        *("revision", "state", "proposed by", "at", "activated by", "note"),
        rows=[
            (
                item.name,
                _state(item),
                item.proposer,
                moment(item.proposed_at),
                item.activator,
                item.note,
            )
            for item in response.revisions
        ],
        empty="no revisions",
    )


def show(
    context: typer.Context,
    name: Name = "active",
    out: Annotated[Path | None, typer.Option(help="Write the bundle (tar.gz) to this file.")] = None,
) -> None:
    """Show a revision and its files; by default the one in force."""
    session = Session.of(context)
    request = policy_pb2.GetRevisionRequest(name=_resource(name))
    response = session.ask(POLICY, "GetRevision", request)
    if out is not None:
        out.write_bytes(response.bundle)
    if session.output.emit(response.revision):
        return
    item = response.revision
    session.output.facts(
        [
            ("revision", item.name),
            ("state", _state(item)),
            ("proposed", f"{moment(item.proposed_at)} by {item.proposer}"),
            ("activated", f"{moment(item.activated_at)} by {item.activator}" if item.activator else ""),
            ("note", item.note),
            ("files", "\n".join(_files(response.bundle))),
        ]
    )


def propose(
    context: typer.Context,
    directory: Directory,
    note: Annotated[str, typer.Option(help="What changes and why.")] = "",
) -> None:
    """Check a folder of policies and keep it as a proposed revision. Another person activates it."""
    session = Session.of(context)
    with tempfile.TemporaryDirectory() as folder, session.output.aside.status("packing and checking"):
        archive = Path(folder) / "bundle.tar.gz"
        _ask_offline(session, "pack", str(directory), str(archive))
        bundle = archive.read_bytes()
        checked = session.ask(
            POLICY, "ValidatePolicy", policy_pb2.ValidatePolicyRequest(bundle=bundle), seconds=_CHECK_SECONDS
        )
        if checked.problems:
            lines = [f"{item.check}: {item.location or '-'}: {item.message}" for item in checked.problems]
            raise Failure("\n".join(lines), title="the bundle does not validate")
        request = policy_pb2.ProposePolicyRequest(bundle=bundle, note=note)
        response = session.ask(POLICY, "ProposePolicy", request, seconds=_CHECK_SECONDS)
    if not session.output.emit(response):
        session.output.line(next_step(response.revision))


def activate(context: typer.Context, name: Name) -> None:
    """Put a proposed revision in force. Needs a second factor and another person than the proposer."""
    session = Session.of(context)
    request = policy_pb2.ActivatePolicyRequest(name=_resource(name))
    with session.output.aside.status("checking and activating"):
        response = session.ask(POLICY, "ActivatePolicy", request, seconds=_CHECK_SECONDS)
    if not session.output.emit(response):
        session.output.line(f"{response.revision.name} is in force")


def rollback(context: typer.Context) -> None:
    """Put the revision before the one in force back."""
    session = Session.of(context)
    with session.output.aside.status("rolling back"):
        response = session.ask(POLICY, "RollbackPolicy", policy_pb2.RollbackPolicyRequest(), seconds=_CHECK_SECONDS)
    if not session.output.emit(response):
        session.output.line(f"{response.revision.name} is in force again")


def _ask_offline(session: Session, *arguments: str) -> dict[str, Any]:
    """Ask the guard's own command; one set-up's settings apply where there is one, and none are needed."""
    home = session.home if session.home.exists else None
    return ask_tool(home, _GUARD, *arguments, seconds=_CHECK_SECONDS)


def _end(session: Session, problems: list[str], done: str) -> None:
    """Name the problems and exit with 1, or say that all is well."""
    for problem in problems:
        session.output.note(f"problem: {problem}", style="red")
    if problems:
        raise typer.Exit(REFUSED)
    session.output.line(done, style="bold green")


def next_step(item: policy_pb2.Revision) -> str:
    """Say what becomes of a revision that was proposed; one that is in force already is proposed by nobody."""
    if item.state == policy_pb2.REVISION_STATE_ACTIVE:
        return f"{item.name} is in force already: this folder changes nothing"
    return f"{item.name} is {_state(item)}; another person: bastide policy activate {item.name}"


def _resource(name: str) -> str:
    return name if name.startswith("revisions/") else f"revisions/{name}"


def _state(item: policy_pb2.Revision) -> str:
    return name_of(policy_pb2.RevisionState, item.state, "REVISION_STATE_")


def _files(bundle: bytes) -> list[str]:
    try:
        with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:gz") as archive:
            return sorted(member.name for member in archive if member.isfile())
    except tarfile.TarError:
        raise Failure("the bundle is not a tar.gz archive") from None
