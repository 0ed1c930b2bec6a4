"""`bastide model release`, `rollback` and `releases`: which versions answer under a model's name."""

from __future__ import annotations

import re
import uuid
from typing import Annotated

import typer

from bastide.model_server.v1 import catalog_pb2
from shared.cli.connection import CATALOG, Session
from shared.cli.failures import USAGE, Failure
from shared.cli.models import Limit, Model, version_name
from shared.cli.render import moment

# Releasing loads the weights of every version, before it is in force.
_RELEASE_SECONDS = 300.0


def register(models: typer.Typer) -> None:
    """Add the commands."""
    models.command(epilog="Examples: bastide model release smollm2 1; bastide model release smollm2 1:90 2:10")(release)
    models.command()(rollback)
    models.command()(releases)


def release(
    context: typer.Context,
    model: Model,
    arms: Annotated[list[str], typer.Argument(metavar="VERSION[:WEIGHT]...", help="Versions and percent of callers.")],
) -> None:
    """Make versions answer under a model's name. Needs a second factor and another person than the importer."""
    session = Session.of(context)
    request = catalog_pb2.CreateReleaseRequest(
        parent=f"models/{model}",
        arms=[_arm(model, arm, only=len(arms) == 1) for arm in arms],
        request_id=str(uuid.uuid4()),
    )
    with session.output.aside.status("loading and releasing"):
        response = session.ask(CATALOG, "CreateRelease", request, seconds=_RELEASE_SECONDS)
    _released(session, response)


def rollback(context: typer.Context, model: Model) -> None:
    """Put the release before the one in force back."""
    session = Session.of(context)
    request = catalog_pb2.RollbackReleaseRequest(parent=f"models/{model}")
    with session.output.aside.status("loading and releasing"):
        response = session.ask(CATALOG, "RollbackRelease", request, seconds=_RELEASE_SECONDS)
    _released(session, response)


def releases(context: typer.Context, model: Model, limit: Limit = 50) -> None:
    """List a model's releases, newest first."""
    session = Session.of(context)
    request = catalog_pb2.ListReleasesRequest(parent=f"models/{model}")
    response = session.pages(CATALOG, "ListReleases", request, "releases", limit=limit)
    session.output.emit(response)
    session.output.table(
        *("generation", "in force", "answers", "released by", "at"),
        rows=[
            (str(item.generation), "yes" if item.active else "", _answers(item), item.releaser, moment(item.created_at))
            for item in response.releases
        ],
        empty="no releases",
    )


def _released(
    session: Session, response: catalog_pb2.CreateReleaseResponse | catalog_pb2.RollbackReleaseResponse
) -> None:
    if not session.output.emit(response):
        session.output.line(f"generation {response.release.generation} is in force: {_answers(response.release)}")


def _answers(item: catalog_pb2.Release) -> str:
    return ", ".join(f"{arm.version} ({arm.weight} %)" for arm in item.arms)


def _arm(model: str, text: str, *, only: bool) -> catalog_pb2.ReleaseArm:
    version, colon, weight = text.partition(":")
    if not (re.fullmatch("[0-9]{1,3}", weight) if colon else only):
        raise Failure(f"{text!r} is not VERSION:WEIGHT; weights sum to 100", exit_code=USAGE)
    return catalog_pb2.ReleaseArm(version=version_name(model, version), weight=int(weight) if colon else 100)
