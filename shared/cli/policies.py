"""`bastide policy`: checking a bundle offline, and its life: proposed, activated by a second person, rolled back."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from bastide.policy_guard.v1 import policy_pb2
from shared.cli.connection import POLICY, Session
from shared.cli.failures import Failure
from shared.cli.render import moment, name_of
from shared.cli.tools import pass_through, run_tool

# A bundle is checked, tested and probed before it is kept or served.
_CHECK_SECONDS = 120.0
_PASS = {"allow_extra_args": True, "ignore_unknown_options": True}
_OFFLINE = {
    "check": "Check a folder of policies as the guard would, offline: parse, lint, schema, tests, samples, lifecycle.",
    "test": "Run the unit tests of a folder of policies, offline.",
    "eval": "Evaluate policies on an input, offline.",
    "recover": "On the guard's host, offline: put an earlier revision or the built-in one in force. Leaves a record.",
}

Name = Annotated[str, typer.Argument(metavar="REVISION", help="revisions/<digest>, or the digest.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="The rules, as Rego bundles with two-person activation.")
    for name, text in _OFFLINE.items():
        group.command(name, help=text, context_settings=_PASS, epilog=f"Example: bastide policy {name} DIR")(
            _offline(name)
        )
    group.command("list")(list_revisions)
    group.command("show")(show)
    group.command("propose", epilog="Example: bastide policy propose ./policies --note 'allow drafting'")(propose)
    group.command("activate")(activate)
    group.command("rollback")(rollback)
    app.add_typer(group, name="policy")


def _offline(name: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        raise typer.Exit(pass_through(Session.of(context).home, "policy-guard", [name, *context.args]))

    return command


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
    directory: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Policies and tests.")],
    note: Annotated[str, typer.Option(help="What changes and why.")] = "",
) -> None:
    """Check a folder of policies and keep it as a proposed revision. Another person activates it."""
    session = Session.of(context)
    with tempfile.TemporaryDirectory() as folder, session.output.aside.status("packing and checking"):
        archive = Path(folder) / "bundle.tar.gz"
        run_tool(session.home, "policy-guard", ["pack", str(directory), str(archive)], seconds=_CHECK_SECONDS)
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
        name = response.revision.name
        session.output.line(f"{name} is {_state(response.revision)}; another person: bastide policy activate {name}")


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
