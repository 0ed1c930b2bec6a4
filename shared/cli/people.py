"""`bastide enrol`, `login`, `whoami`, `user` and `use-policy`: people, their factors and their roles."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Annotated

import jwt
import segno
import typer

from bastide.policy_guard.v1 import identity_pb2
from shared.cli.authenticator import Authenticator, secret_of
from shared.cli.connection import DEFAULT_CLIENT, IDENTITY, Session
from shared.cli.credentials import Credential
from shared.cli.failures import USAGE, Failure
from shared.cli.render import moment
from shared.keys import files

PasswordFile = Annotated[Path | None, typer.Option(help="Read the password from this file (mode 0600), for scripts.")]
Subject = Annotated[str, typer.Argument(help="Who, for example ada@example.org.")]
Role = Annotated[
    list[str] | None,
    typer.Option(metavar="ROLE", help="A role of policy's `roles`, as user; repeat for more."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: bastide enrol ada@example.org --code 7Q2K-...")(enrol)
    app.command(epilog="Examples: bastide login ada@example.org; bastide login ada@example.org --no-mfa")(login)
    app.command()(whoami)
    users = typer.Typer(no_args_is_help=True, help="People who may sign in.")
    users.command("create", epilog="Example: bastide user create cleo@example.org --role developer")(create)
    users.command("list")(list_users)
    users.command("update", epilog="Example: bastide user update cleo@example.org --role auditor")(update)
    users.command("recover")(recover)
    app.add_typer(users, name="user")
    use_policy = typer.Typer(no_args_is_help=True, help="The acceptable-use policy that people accept before use.")
    use_policy.command("show")(show_use_policy)
    use_policy.command("accept")(accept_use_policy)
    app.add_typer(use_policy, name="use-policy")


def enrol(
    context: typer.Context,
    subject: Subject,
    code: Annotated[str, typer.Option(help="The single-use enrolment code.")],
    password_file: PasswordFile = None,
    totp_secret_file: Annotated[
        Path | None, typer.Option(help="Keep the second factor in this file instead of asking, for scripts.")
    ] = None,
) -> None:
    """Set a password and a second factor with a single-use code."""
    session = Session.of(context)
    password = _password(password_file, "New password (12 characters or more)", confirm=True)
    started = session.ask(
        IDENTITY,
        "StartEnrollment",
        identity_pb2.StartEnrollmentRequest(subject=subject, code=code, password=password),
        public=True,
    )
    if totp_secret_file is None:
        session.output.note(f"Add this to an authenticator: {started.totp_uri}", style="")
        if sys.stderr.isatty():
            segno.make(started.totp_uri).terminal(out=sys.stderr, compact=True)
        totp = typer.prompt("Code shown by the authenticator", err=True)
    else:
        authenticator = Authenticator(totp_secret_file)
        authenticator.create(secret_of(started.totp_uri))
        totp = authenticator.code()
    session.ask(
        IDENTITY,
        "ConfirmEnrollment",
        identity_pb2.ConfirmEnrollmentRequest(subject=subject, code=code, totp=totp),
        public=True,
    )
    if not session.output.emit({"subject": subject, "enrolled": True}):
        session.output.line(f"{subject} is enrolled; next: bastide login {subject}")


def login(
    context: typer.Context,
    *,
    subject: Subject,
    no_mfa: Annotated[
        bool, typer.Option("--no-mfa", help="Sign in with the password alone; changes will be refused.")
    ] = False,
    password_file: PasswordFile = None,
    totp: Annotated[str, typer.Option(help="Current code of the authenticator; asked for when missing.")] = "",
    totp_secret_file: Annotated[
        Path | None, typer.Option(help="Take the code from the file that `enrol --totp-secret-file` wrote.")
    ] = None,
) -> None:
    """Sign in and keep the token here until it expires. The last to sign in is who commands act as."""
    session = Session.of(context)
    if sum((no_mfa, bool(totp), totp_secret_file is not None)) > 1:
        raise Failure("choose one of --no-mfa, --totp and --totp-secret-file", exit_code=USAGE)
    password = _password(password_file, "Password")
    if totp_secret_file is not None:
        with session.output.aside.status("waiting for a code that was not used before"):
            totp = Authenticator(totp_secret_file).code()
    elif not totp and not no_mfa:
        totp = typer.prompt("Code shown by the authenticator", err=True)
    signed_in = session.ask(
        IDENTITY,
        "SignIn",
        identity_pb2.SignInRequest(subject=subject, password=password, totp=totp),
        public=True,
    )
    expires_at = signed_in.expires_at.ToDatetime(dt.UTC)
    session.credentials.save(
        Credential(
            subject=subject,
            client=session.client or DEFAULT_CLIENT,
            expires_at=expires_at.timestamp(),
            token=signed_in.token,
        )
    )
    document = {"subject": subject, "expires_at": expires_at.isoformat(), "mfa": bool(totp)}
    if not session.output.emit(document):
        session.output.line(f"signed in as {subject} until {moment(signed_in.expires_at)}")


def whoami(context: typer.Context) -> None:
    """Show who commands act as, from the token kept here; only a service can say whether it still holds."""
    session = Session.of(context)
    credential = session.credentials.get(session.person)
    claims = jwt.decode(credential.token, options={"verify_signature": False})
    expires = dt.datetime.fromtimestamp(credential.expires_at, dt.UTC)
    document = {
        "subject": claims.get("sub", ""),
        "tenant": claims.get("tenant", ""),
        "roles": claims.get("roles", []),
        "mfa": "mfa" in claims.get("amr", []),
        "client": credential.client,
        "expires_at": expires.isoformat(),
    }
    if session.output.emit(document):
        return
    session.output.facts(
        [
            ("person", document["subject"]),
            ("tenant", document["tenant"]),
            ("roles", ", ".join(document["roles"]) or "none"),
            ("second factor", "yes" if document["mfa"] else "no: changes will be refused"),
            ("client certificate", credential.client),
            ("until", f"{expires:%Y-%m-%d %H:%M:%SZ}"),
        ]
    )


def create(
    context: typer.Context,
    subject: Subject,
    role: Role = None,
    tenant: Annotated[str, typer.Option(help="Organisation unit.")] = "default",
) -> None:
    """Create a person; prints a single-use enrolment code to hand over on another channel."""
    session = Session.of(context)
    user = identity_pb2.User(subject=subject, tenant=tenant, roles=role or ())
    response = session.ask(IDENTITY, "CreateUser", identity_pb2.CreateUserRequest(user=user))
    _show_code(session, response, subject)


def list_users(
    context: typer.Context, limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 200
) -> None:
    """List people."""
    session = Session.of(context)
    response = session.pages(IDENTITY, "ListUsers", identity_pb2.ListUsersRequest(), "users", limit=limit)
    session.output.emit(response)
    session.output.table(
        *("subject", "tenant", "roles", "enrolled", "disabled", "use policy"),
        rows=[
            (
                user.subject,
                user.tenant,
                ", ".join(user.roles),
                "yes" if user.enrolled else "no",
                "yes" if user.disabled else "no",
                user.acknowledged_use_policy or "-",
            )
            for user in response.users
        ],
        empty="nobody",
    )


def update(
    context: typer.Context,
    subject: Subject,
    role: Role = None,
    no_roles: Annotated[bool, typer.Option("--no-roles", help="Take all roles away.")] = False,
    disabled: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Whether the person may no longer sign in.")
    ] = None,
) -> None:
    """Replace a person's roles, or disable or enable them. What is not named stays."""
    session = Session.of(context)
    if no_roles and role:
        raise Failure("choose one of --role and --no-roles", exit_code=USAGE)
    user = session.ask(IDENTITY, "GetUser", identity_pb2.GetUserRequest(subject=subject)).user
    if role or no_roles:
        user.roles[:] = role or ()
    if disabled is not None:
        user.disabled = disabled
    response = session.ask(IDENTITY, "UpdateUser", identity_pb2.UpdateUserRequest(user=user))
    if not session.output.emit(response):
        state = "disabled" if response.user.disabled else "may sign in"
        session.output.line(f"{subject}: {', '.join(response.user.roles) or 'no roles'}; {state}")


def recover(context: typer.Context, subject: Subject) -> None:
    """Void a person's password and second factor; prints a new enrolment code."""
    session = Session.of(context)
    response = session.ask(IDENTITY, "RecoverUser", identity_pb2.RecoverUserRequest(subject=subject))
    _show_code(session, response, subject)


def show_use_policy(context: typer.Context) -> None:
    """Show the acceptable-use policy in force."""
    session = Session.of(context)
    response = session.ask(IDENTITY, "GetUsePolicy", identity_pb2.GetUsePolicyRequest(), public=True)
    if not session.output.emit(response):
        session.output.line(f"version {response.version}\n\n{response.text}")


def accept_use_policy(
    context: typer.Context,
    version: Annotated[str, typer.Option(help="The version you read; asked for when missing.")] = "",
) -> None:
    """Accept the acceptable-use policy that is in force."""
    session = Session.of(context)
    if not version:
        response = session.ask(IDENTITY, "GetUsePolicy", identity_pb2.GetUsePolicyRequest(), public=True)
        session.output.note(f"version {response.version}\n\n{response.text}\n", style="")
        typer.confirm("Do you accept it?", abort=True, err=True)
        version = response.version
    session.ask(IDENTITY, "AcknowledgeUsePolicy", identity_pb2.AcknowledgeUsePolicyRequest(version=version))
    if not session.output.emit({"accepted": version}):
        session.output.line(f"accepted version {version}")


def _show_code(
    session: Session, response: identity_pb2.CreateUserResponse | identity_pb2.RecoverUserResponse, subject: str
) -> None:
    if session.output.emit(response):
        return
    session.output.facts(
        [("enrolment code", response.enrollment_code), ("valid until", moment(response.code_expires_at))]
    )
    session.output.note(f"Shown once. {subject}: bastide enrol {subject} --code CODE")


def _password(path: Path | None, question: str, *, confirm: bool = False) -> str:
    if path is None:
        return str(typer.prompt(question, hide_input=True, confirmation_prompt=confirm, err=True))
    return files.read(path, forbidden_mode=files.PRIVATE).decode().removesuffix("\n")
