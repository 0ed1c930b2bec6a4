"""The root of the `bastide` command: global options, and the boundary where every failure becomes one panel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from shared.cli import chat, evidence, installation, logs, models, people, policies, releases, services
from shared.cli.connection import Home, Session
from shared.cli.failures import INTERNAL, report
from shared.cli.render import Output

_FLAG = "--json"
_EPILOG = """
Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 a service is unavailable.

A first morning: bastide init; bastide up audit policy-guard; bastide admin bootstrap ada@example.org ben@example.org;
bastide enrol ada@example.org --code CODE; bastide login ada@example.org; bastide up; bastide model list.
"""


class Root(TyperGroup):
    """Takes `--json` anywhere on the line, and shows what a command raises as one panel."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--json` to the front, unless it stands behind `--`."""
        end = args.index("--") if "--" in args else len(args)
        head = args[:end]
        if _FLAG in head:
            args = [_FLAG, *(item for item in head if item != _FLAG), *args[end:]]
        with _usage_told(as_json=_FLAG in head):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; failures end it with their exit code, and those that nobody foresaw in one line too."""
        try:
            with _usage_told(as_json=bool(ctx.params.get("as_json"))):
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, TyperException):
            raise
        except Exception as error:
            output = Output(as_json=bool(ctx.params.get("as_json")))
            exit_code = report(output, error)
            if exit_code is None:
                if os.environ.get("BASTIDE_DEBUG"):
                    raise
                lines = (f"{type(error).__name__}: {error}", "BASTIDE_DEBUG=1 shows where")
                output.failure("internal error", lines, {"reason": "INTERNAL", "message": lines[0]})
                exit_code = INTERNAL
            raise typer.Exit(exit_code) from None


@contextlib.contextmanager
def _usage_told(*, as_json: bool) -> Iterator[None]:
    """Tell programs of wrong usage too; people are told by typer, which also ends the command with exit code 2."""
    try:
        yield
    except TyperException as error:
        Output(as_json=as_json).emit({"error": {"reason": "USAGE", "message": error.format_message()}})
        raise


app = typer.Typer(
    cls=Root,
    help="Bastide: guarded inference with proof. One command to set up, run, use and audit the suite.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def root(
    context: typer.Context,
    home: Annotated[
        Path, typer.Option(envvar="BASTIDE_HOME", help="Folder of the set-up: certificates, tokens, configuration.")
    ] = Path(".bastide"),
    as_json: Annotated[
        bool, typer.Option(_FLAG, help="Write one JSON document to standard output; allowed anywhere.")
    ] = False,
    person: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Act as this signed-in person. Default: the last to sign in.")
    ] = "",
    client: Annotated[
        str, typer.Option(metavar="NAME", help="Use this client certificate. Default: the token's, else `cli`.")
    ] = "",
) -> None:
    """Gather what every command needs."""
    context.obj = Session(home=Home(home), output=Output(as_json=as_json), person=person, client=client)


installation.register(app)
services.register(app)
people.register(app)
chat.register(app)
releases.register(models.register(app))
policies.register(app)
evidence.register(logs.register(app))


def main() -> None:
    """Run `bastide`."""
    app(prog_name="bastide")


if __name__ == "__main__":
    main()
