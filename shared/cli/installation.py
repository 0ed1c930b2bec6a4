"""`bastide init`, `client` and `admin`: what is done once, on the host of the set-up, before anyone can sign in."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer

from shared.cli import setup
from shared.cli.connection import DEFAULT_CLIENT, Session
from shared.cli.failures import Failure
from shared.cli.tools import ask_tool, run_tool
from shared.rpc.tls import first_end

_SECONDS = 120.0


def _client_name(name: str) -> str:
    if not setup.CLIENT_NAME.fullmatch(name):
        raise typer.BadParameter("a name has up to 63 of a-z, 0-9, '.' and '-', and begins with a letter or digit")
    return name


def _client_names(names: list[str] | None) -> list[str] | None:
    return names and [_client_name(name) for name in names]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    clients = typer.Typer(no_args_is_help=True, help="Client certificates: who may connect at all.")
    clients.command("add")(add_client)
    admin = typer.Typer(no_args_is_help=True, help="What only someone on the guard's host may do.")
    admin.command("bootstrap", epilog="Example: bastide admin bootstrap ada@example.org ben@example.org")(bootstrap)
    admin.command("recover", epilog="Example: bastide admin recover ada@example.org --by ben")(recover)
    app.command("init", epilog="Example: bastide --home /srv/bastide init --client cli --client portal")(init)
    app.command("renew", epilog="Example: bastide renew")(renew)
    app.add_typer(clients, name="client")
    app.add_typer(admin, name="admin")


def init(
    context: typer.Context,
    base_port: Annotated[
        int, typer.Option(min=1, max=65_000, help="First of the gRPC ports; those of the probes are 10 above.")
    ] = setup.BASE_PORT,
    client: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", callback=_client_names, help="Client certificate to issue; repeat for more."),
    ] = None,
) -> None:
    """Make certificates, keys, the log's identity and configuration in the folder --home. It must be empty."""
    session = Session.of(context)
    home = session.home.path
    clients = tuple(dict.fromkeys((DEFAULT_CLIENT, *(client or ()))))
    try:
        setup.create(home, base_port=base_port, clients=clients)
    except FileExistsError:
        raise Failure(f"{home} is not empty; choose another --home", title="init refused") from None
    except OSError as error:
        raise Failure(f"{home} cannot be filled: {error.strerror or error}", title="init failed") from None
    document = {"home": str(home.resolve()), "clients": list(clients), "log_key": str(session.home.log_key.resolve())}
    if session.output.emit(document):
        return
    session.output.facts(
        [
            ("set-up", str(home)),
            ("client certificates", ", ".join(clients)),
            (
                "certificates end",
                f"{session.home.certificate_end('audit'):%Y-%m-%d %H:%M:%SZ} (before then: bastide renew)",
            ),
            ("public key of the audit log", f"{session.home.log_key} (give it to auditors)"),
            ("next", "bastide up audit policy-guard, then bastide admin bootstrap SUBJECT SUBJECT"),
        ]
    )


def add_client(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            callback=_client_name, help="Name of the workload: becomes spiffe://<trust-domain>/client/NAME."
        ),
    ],
) -> None:
    """Issue another client certificate."""
    session = Session.of(context)
    session.home.configuration("audit")
    if (session.home.path / "pki" / "clients" / f"{name}.pem").exists():
        raise Failure(f"there is a client certificate {name!r} already")
    setup.issue_client(session.home.path, name)
    if not session.output.emit({"client": name}):
        session.output.line(f"issued; use it with: bastide --client {name} ...")


def renew(context: typer.Context) -> None:
    """Issue fresh certificates to all services and clients of the set-up; running services take them up."""
    session = Session.of(context)
    session.home.configuration("audit")
    if (end := first_end((session.home.path / "pki" / "ca.pem").read_bytes())) <= dt.datetime.now(dt.UTC):
        raise Failure(
            f"the authority of this set-up ended at {end:%Y-%m-%d %H:%M:%SZ} and issues nothing any more; "
            "put another in the place of pki/ca.pem and pki/ca.key",
            title="not renewed",
        )
    renewed = setup.renew(session.home.path)
    if not session.output.emit({"renewed": renewed}):
        session.output.line(f"renewed: {', '.join(renewed)}. People whose tokens are bound to theirs sign in again.")


def bootstrap(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="SUBJECT", help="An administrator.")],
    second: Annotated[str, typer.Argument(metavar="SUBJECT", help="Another one: changes need two people.")],
) -> None:
    """Print single-use enrolment codes for the first two administrators. Refused once there is one."""
    session = Session.of(context)
    run_tool(session.home, "policy-guard", "migrate", seconds=_SECONDS)
    _show_codes(session, ask_tool(session.home, "policy-guard", "bootstrap", first, second, seconds=_SECONDS))


def recover(
    context: typer.Context,
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="Somebody who is registered.")],
    by: Annotated[str, typer.Option(help="Who does this, for the record in the log.")],
) -> None:
    """Make a registered person an administrator anew, when none can sign in any more; the log tells of it."""
    session = Session.of(context)
    _show_codes(
        session,
        ask_tool(session.home, "policy-guard", "recover-administrator", subject, f"--by={by}", seconds=_SECONDS),
    )


def _show_codes(session: Session, document: dict[str, Any]) -> None:
    if session.output.emit(document):
        return
    session.output.table(
        "administrator",
        "enrolment code",
        "valid until",
        rows=[(item["subject"], item["code"], item["expires_at"]) for item in document["administrators"]],
        empty="no codes",
    )
    session.output.note("Shown once. Each person: bastide enrol SUBJECT --code CODE")
