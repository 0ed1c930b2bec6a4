"""What the scenes of the demo are told with: every one checks what it shows, and the story breaks otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rich.console import Console

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from bastide.model_server.v1 import inference_pb2, inference_pb2_grpc
from bastide.types.v1 import content_pb2, evidence_pb2
from tests.suite import Person, ProcessSuite

MODEL = "smollm2"
Metadata = tuple[tuple[str, str], ...]


class StoryBroke(Exception):
    """Something did not happen as told."""


def check(condition: object, what: str) -> None:
    if not condition:
        raise StoryBroke(what)


class Story:
    """The set-up, the people, and what was kept of their calls."""

    def __init__(self, home: Path, *, keep: bool = False) -> None:
        self.home = home
        self.keep = keep
        self.out = Console(highlight=False, width=110)
        self.times: list[tuple[str, float]] = []
        self.suite = ProcessSuite(home)
        self.people: dict[str, Person] = {}
        self.receipts: dict[str, evidence_pb2.Receipt] = {}

    @contextlib.contextmanager
    def scene(self, title: str) -> Iterator[None]:
        self.out.print(f"\n[bold cyan]{len(self.times) + 1}. {title}[/]")
        started = time.monotonic()
        yield
        self.times.append((title, time.monotonic() - started))

    def say(self, text: str) -> None:
        self.out.print(f"   {text}")

    def ok(self, text: str) -> None:
        self.out.print(f"   [green]✓[/] {text}")

    def call(self, prompt: str, purpose: str, tokens: int) -> inference_pb2.InferenceCall:
        return inference_pb2.InferenceCall(
            model=MODEL,
            purpose=purpose,
            messages=[content_pb2.Message(role=content_pb2.ROLE_USER, content=prompt)],
            parameters=content_pb2.SamplingParameters(max_new_tokens=tokens, temperature=0),
        )

    async def ask(
        self,
        prompt: str,
        metadata: Metadata,
        *,
        purpose: str = "internal-assistant",
        tokens: int = 48,
        client: str = "cli",
    ) -> tuple[str, inference_pb2.GenerationEnd]:
        stub = inference_pb2_grpc.InferenceServiceStub(self.suite.channel("model-server", client))
        text, end = "", None
        async for event in stub.GenerateStream(
            inference_pb2.GenerateStreamRequest(call=self.call(prompt, purpose, tokens)), metadata=metadata, timeout=90
        ):
            if event.HasField("chunk"):
                self.piece(event.chunk.text, first=not text)
                text += event.chunk.text
            elif event.HasField("end"):
                end = event.end
        self.out.print()
        check(end is not None, "a stream ended well without its end")
        assert end is not None
        return text, end

    async def refused(self, who: str, work: object, reason: str) -> str:
        """Show the refusal, which must be for `reason`; return the id of the call."""
        try:
            await work  # type: ignore[misc]
        except grpc.aio.AioRpcError as error:
            info, failure = error_details_pb2.ErrorInfo(), error_details_pb2.PreconditionFailure()
            status = rpc_status.from_call(error)
            for detail in status.details if status is not None else ():
                detail.Unpack(info) or detail.Unpack(failure)
            reasons = {info.reason, *(violation.type for violation in failure.violations)}
            check(reason in reasons, f"{who}: refused for {sorted(reasons)} and not for {reason}")
            decision = info.metadata.get("decision_id", "")
            reference = f"  [dim]decision {decision[:8]}…[/]" if decision else ""
            self.out.print(f"   [red]✗[/] {who}: [red]{error.code().name}[/] ({reason}) {error.details()}{reference}")
            return info.metadata["call_id"]
        raise StoryBroke(f"{who}: should have been refused")

    async def records(self, call_id: str, *, until: record_pb2.RecordKind.ValueType) -> list[str]:
        stub = audit_pb2_grpc.AuditServiceStub(self.suite.channel("audit"))
        async with asyncio.timeout(20):
            while True:
                answer = await stub.ListRecords(
                    audit_pb2.ListRecordsRequest(filter=audit_pb2.RecordFilter(call_id=call_id)),
                    metadata=self.people["ann"].metadata,
                    timeout=10,
                )
                kinds = [entry.kind for entry in reversed(answer.entries)]
                if until in kinds:
                    return [record_pb2.RecordKind.Name(kind).removeprefix("RECORD_KIND_") for kind in kinds]
                await asyncio.sleep(0.2)

    def bastide(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "bastide"), "--home", str(self.home), *arguments]
        self.say(f"[dim]$ bastide {' '.join(arguments)}[/]".replace(str(self.home), "…"))
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def piece(self, text: str, *, first: bool) -> None:
        """Show a piece of an answer as it arrives."""
        if first:
            self.out.print("   [dim]answer:[/] ", end="")
        shown = text.replace("\n\n", "\n").replace("\n", "\n           ")
        self.out.print(shown, end="", markup=False, style="italic", soft_wrap=True)

    def found(self, where: str, findings: object) -> None:
        for item in findings:  # type: ignore[attr-defined]
            action = content_pb2.ContentAction.Name(item.action).removeprefix("CONTENT_ACTION_")
            self.ok(f"{where}: {item.kind} at {item.start}–{item.end}: {action}")

    def done(self, end: inference_pb2.GenerationEnd) -> None:
        reason = content_pb2.FinishReason.Name(end.finish_reason).removeprefix("FINISH_REASON_")
        self.ok(
            f"{reason}, {end.usage.prompt_tokens} + {end.usage.completion_tokens} tokens, {end.model_version}, "
            f"decision {end.receipt.decision_id[:8]}…, receipt of {len(end.receipt.leaf)} bytes"
        )
