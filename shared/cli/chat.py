"""`bastide chat`: one guarded conversation, streamed, with what was redacted and the proof that it was recorded."""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from bastide.model_server.v1 import inference_pb2
from bastide.types.v1 import content_pb2, evidence_pb2
from shared.cli.connection import INFERENCE, Session
from shared.cli.failures import USAGE, CallFailed, Failure, report
from shared.cli.render import as_dict, name_of, printable
from shared.errors import Error
from shared.transparency.proof import TlogProof

_CALL_SECONDS = 600.0
_DONE = {
    content_pb2.CONTENT_ACTION_PASS: "left as it was",
    content_pb2.CONTENT_ACTION_REDACT: "redacted",
    content_pb2.CONTENT_ACTION_TOKENISE: "replaced by a surrogate",
    content_pb2.CONTENT_ACTION_BLOCK: "blocked",
}
_EPILOG = """
Examples: bastide chat smollm2 "What is a bastide?" --purpose internal-assistant;
bastide chat smollm2 --purpose internal-assistant (a conversation; Ctrl-D ends it);
bastide chat smollm2 - --purpose internal-assistant --receipt receipt.json < question.txt
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=_EPILOG)(chat)


def chat(
    context: typer.Context,
    *,
    model: Annotated[str, typer.Argument(help="A released model, for example smollm2.")],
    prompt: Annotated[str, typer.Argument(help="What to say; `-` reads it; without it, a conversation.")] = "",
    purpose: Annotated[str, typer.Option(help="Purpose id, judged by policy.")] = "internal-assistant",
    system: Annotated[str, typer.Option(help="Instructions put before the conversation.")] = "",
    max_new_tokens: Annotated[
        int, typer.Option(min=0, max=2**31, help="Cap on generated tokens; 0: the server's.")
    ] = 0,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 draws the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Nucleus sampling mass.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeat for more.")] = None,
    receipt: Annotated[Path | None, typer.Option(help="Write the receipt of the last answer here, as JSON.")] = None,
) -> None:
    """Talk to a model. The answer goes to standard output, everything about it to standard error."""
    session = Session.of(context)
    call = inference_pb2.InferenceCall(model=model, purpose=purpose)
    call.parameters.max_new_tokens = max_new_tokens
    call.parameters.stop.extend(stop or ())
    if temperature is not None:
        call.parameters.temperature = temperature
    if top_p is not None:
        call.parameters.top_p = top_p
    if system:
        call.messages.add(role=content_pb2.ROLE_SYSTEM, content=system)
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode(errors="surrogateescape")
    if prompt:
        _turn(session, call, prompt, receipt)
        return
    if session.output.as_json or not sys.stdin.isatty():
        raise Failure("a PROMPT is needed, or `-` to read it", exit_code=USAGE)
    with contextlib.suppress(EOFError):
        while True:
            if said := input("> ").strip():
                _exchange(session, call, said, receipt)


def _exchange(session: Session, call: inference_pb2.InferenceCall, said: str, receipt: Path | None) -> None:
    """Have one turn of a conversation; what was refused is no part of it."""
    before = len(call.messages)
    try:
        answer = _turn(session, call, said, receipt)
        call.messages.add(role=content_pb2.ROLE_ASSISTANT, content=answer or " ")
    except CallFailed as error:
        del call.messages[before:]
        report(session.output, error)


def _turn(session: Session, call: inference_pb2.InferenceCall, prompt: str, receipt: Path | None) -> str:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise Failure("the prompt is not UTF-8 text", exit_code=USAGE) from None
    call.messages.add(role=content_pb2.ROLE_USER, content=prompt)
    text, start, end = session.run(_generate(session, call))
    if receipt is not None:
        receipt.write_text(json_format.MessageToJson(end.receipt, preserving_proto_field_name=True) + "\n")
    if not session.output.emit(
        {"text": text, "call_id": start.call_id, "decision_id": start.decision_id, **as_dict(end)}
    ):
        _summarise(session, end)
        if receipt is not None:
            session.output.note(f"receipt: {receipt} (bastide audit receipt verify {receipt})")
    return text


async def _generate(
    session: Session, call: inference_pb2.InferenceCall
) -> tuple[str, inference_pb2.GenerationStart, inference_pb2.GenerationEnd]:
    parts: list[str] = []
    start, end = inference_pb2.GenerationStart(), None
    try:
        async with session.method(INFERENCE, "GenerateStream") as generate:
            request = inference_pb2.GenerateStreamRequest(call=call)
            async for event in generate(request, timeout=_CALL_SECONDS):
                match event.WhichOneof("event"):
                    case "start":
                        start = event.start
                        _announce(session, "prompt", start.prompt_findings)
                    case "chunk":
                        parts.append(event.chunk.text)
                        _write(session, event.chunk.text)
                        _announce(session, "answer", event.chunk.findings, inline=True)
                    case "end":
                        end = event.end
    finally:
        if parts:
            _write(session, "\n")
    if end is None:
        raise Failure("the answer ended without its end; it does not count as complete", title="chat broke off")
    return "".join(parts), start, end


def _write(session: Session, text: str) -> None:
    if session.output.as_json:
        return
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _announce(session: Session, where: str, findings: Iterable[Any], *, inline: bool = False) -> None:
    """Say what was done, as it happens; inside a streamed answer only where somebody watches."""
    counts = _counts(findings)
    if not counts or (inline and not session.output.aside.is_terminal):
        return
    said = ", ".join(counts)
    if inline:
        session.output.aside.print(f" ‹{printable(said)}› ", style="yellow", end="")
    else:
        session.output.note(f"{where}: {said}", style="yellow")


def _counts(findings: Iterable[Any]) -> list[str]:
    counted = collections.Counter((item.action, item.kind) for item in findings)
    return [f"{_DONE.get(action, 'refused')} {kind} × {count}" for (action, kind), count in sorted(counted.items())]


def _summarise(session: Session, end: inference_pb2.GenerationEnd) -> None:
    note = session.output.note
    if counts := _counts(end.findings):
        note(f"answer: {', '.join(counts)}", style="yellow")
    reason = name_of(content_pb2.FinishReason, end.finish_reason, "FINISH_REASON_")
    usage = end.usage
    note(f"{end.model_version}; {usage.prompt_tokens} + {usage.completion_tokens} tokens; ended: {reason}")
    note(f"decision {end.receipt.decision_id}; {_place(end.receipt)}")


def _place(receipt: evidence_pb2.Receipt) -> str:
    try:
        return f"recorded as entry {TlogProof.parse(receipt.proof).index}"
    except Error:
        return "the receipt holds no readable proof"
