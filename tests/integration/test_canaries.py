"""A thousand secrets and personal values go in; none may be found in plaintext in anything that is kept or shown."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import random
import re
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import pytest

from bastide.model_server.v1 import catalog_pb2, catalog_pb2_grpc, inference_pb2, inference_pb2_grpc
from bastide.policy_guard.v1 import identity_pb2
from services.model_server.backends import GenerationRequest
from tests.fakes.interposer import Fault
from tests.integration.stage import Outcome, Stage, question

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.xdist_group("stage"),
    pytest.mark.slow,
    pytest.mark.timeout(400),
]

COUNT = 1000
AT_ONCE = 8
# Every value of a kind holds its kind's marker, so that one search finds them all, however few survive.
MARKERS = {
    "email": "qzxkvwmail",
    "token": "qzxkvwtokn",
    "password": "qzxkvwpass",
    "plain": "qzxkvwtext",
    "iban": "7713042965",
    "card": "4929471180",
    "phone": "1579930486",
}


@dataclasses.dataclass(frozen=True)
class Canary:
    """`value` as a person would write it; `name` as a model, purpose or metadata value may be spelt."""

    value: str
    name: str


def canaries(count: int, seed: int = 7) -> list[Canary]:
    """Return `count` distinct values that the detectors know, and some that none of them does."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        kind = list(MARKERS)[number % len(MARKERS)]
        marker, tail = MARKERS[kind], f"{number:04d}{rng.randrange(10**4):04d}"
        match kind:
            case "email":
                value = f"{marker}{tail}@customer.example"
            case "token":
                value = f"ghp_{marker}{tail}{'A' * 20}"
            case "password":
                value = f"password: {marker}{tail}"
            case "iban":
                value = _iban(f"{marker}{tail}")
            case "card":
                value = _luhn(f"{marker}{tail[-5:]}")
            case "phone":
                value = f"+49 {marker}{tail[3:]}"
            case _:
                value = f"{marker}{tail}"
        made.append(Canary(value=value, name=f"{marker}{tail}"))
    return made


def _iban(account: str) -> str:
    bban = account.ljust(18, "0")
    return f"DE{98 - int(bban + '131400') % 97:02d}{bban}"


def _luhn(number: str) -> str:
    total = 0
    for position, digit in enumerate(reversed(number)):
        double = int(digit) * (1 if position % 2 else 2)
        total += double - 9 if double > 9 else double
    return number + str(-total % 10)


def needles() -> re.Pattern[bytes]:
    """Return what finds a marker in plain, in hex and in base64 at each of its three alignments."""
    forms: set[bytes] = set()
    for marker in (item.encode() for item in MARKERS.values()):
        forms |= {marker, marker.hex().encode(), marker.upper(), marker.decode().encode("utf-16-le")}
        for shift in range(3):
            encoded = base64.b64encode(b"\0" * shift + marker)
            # The characters at both ends depend on the bytes around.
            forms.add(encoded[4 if shift else 0 : len(marker) // 3 * 4])
    return re.compile(b"|".join(map(re.escape, forms)))


def found_in(data: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return where a marker stands, and a little around it."""
    pattern = needles()
    return [
        f"{name}: ...{content[max(0, hit.start() - 60) : hit.end() + 20]!r}"
        for name, content in data
        for hit in pattern.finditer(content)
    ]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield everything that lies on disk below `folder`: databases with their WAL, objects, tiles, logs, temporaries."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path.read_bytes()


def shown(stage: Stage) -> Iterator[tuple[str, bytes]]:
    """Yield what operators see: metrics and traces (logs are files)."""
    for name, port in stage.suite.probes.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            yield f"metrics of {name}", answer.read()
    for span in stage.spans.get_finished_spans():
        yield f"span {span.name}", span.to_json().encode()


def echo(request: GenerationRequest) -> list[str]:
    """Say what was asked, in pieces that cut words."""
    text = request.messages[-1].content
    return [text[start : start + 7] for start in range(0, len(text), 7)]


async def test_search_finds_what_it_is_for() -> None:
    for canary in canaries(len(MARKERS)):
        for data in (canary.value, canary.value.encode().hex(), *(_base64(canary.value, pad) for pad in range(3))):
            assert found_in([("control", f"before {data} after".encode())]), (canary, data)


def _base64(value: str, pad: int) -> str:
    return base64.b64encode(b"-" * pad + value.encode()).decode()


async def test_no_canary_is_kept_or_shown_in_plaintext(stage: Stage) -> None:
    stage.backend.script = echo
    room = asyncio.Semaphore(AT_ONCE)
    outcomes: list[Outcome] = []

    async def sent(number: int, canary: Canary) -> None:
        async with room:
            outcomes.append(await push(stage, number % 8, canary))

    asked = len(stage.backend.asked)
    made = canaries(COUNT)
    assert len({canary.value for canary in made}) == COUNT
    assert found_in([("nothing", b"".join(content for _, content in files(stage.folder)))]) == []
    await asyncio.gather(*(sent(number, canary) for number, canary in enumerate(made)))
    answered = [outcome for outcome in outcomes if outcome.code is grpc.StatusCode.OK]
    assert len(answered) >= COUNT // 4
    assert found_in(("answers", outcome.text.encode()) for outcome in answered), "nothing was echoed at all"
    assert len(stage.backend.asked) - asked >= COUNT // 4
    # Records with kept text wait in the outbox, where they are sealed.
    stage.audit.fail("COMPLETED", Fault.ERROR)
    for canary in made[: 2 * len(MARKERS)]:
        outcomes.append(await stage.ask("unary", question(f"Keep {canary.value}.", purpose="customer-support")))
    assert len(stage.outbox) == 2 * len(MARKERS)
    assert found_in(files(stage.folder)) == []
    await stage.reset()
    assert found_in(files(stage.folder)) == []
    kept = "\n".join(name for name, _ in files(stage.folder))
    for part in ("audit/records.db-wal", "policy-guard/records.db", "audit/log/tile", "model-server/objects", "log"):
        assert part in kept
    assert found_in(shown(stage)) == []
    assert len(list(shown(stage))) > COUNT
    for outcome in outcomes:
        assert found_in([("status", f"{outcome.details} {outcome.metadata}".encode())]) == []


async def push(stage: Stage, way: int, canary: Canary) -> Outcome:
    """Send one canary one way."""
    text = f"Please remember this: {canary.value}, and tell me."
    match way:
        case 0:
            return await stage.ask("unary", question(text))
        case 1:
            return await stage.ask("stream", question(text))
        case 2:  # kept, sealed
            return await stage.ask("unary", question(text, purpose="customer-support"))
        case 3:  # denied, with the prompt in hand
            return await stage.ask("stream", question(text, purpose="weather"))
        case 4:
            return await stage.ask("unary", question("hello", model=canary.name))
        case 5:  # a field that breaks the contract
            return await stage.ask("unary", question("hello", purpose=canary.value + " %"))
        case 6:
            metadata = (("x-note", canary.value), ("traceparent", canary.name))
            return await stage.ask("stream", question(text), metadata=metadata)
        case _:
            return await bare(stage, canary)


async def bare(stage: Stage, canary: Canary) -> Outcome:
    """Use the value as a token, as a resource's name and as a method."""
    channel = stage.suite.channel("model-server")
    outcome = Outcome()
    calls = (
        inference_pb2_grpc.InferenceServiceStub(channel).Generate(
            inference_pb2.GenerateRequest(call=question()),
            metadata=(("authorization", f"Bearer {canary.value}"),),
            timeout=10,
        ),
        channel.unary_unary(f"/bastide.model_server.v1.InferenceService/{canary.name}")(b"", timeout=10),
        catalog_pb2_grpc.CatalogServiceStub(channel).ListModels(
            catalog_pb2.ListModelsRequest(page_token=canary.value), metadata=stage.user.metadata, timeout=10
        ),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        if refused.value.code() is not grpc.StatusCode.UNIMPLEMENTED:  # gRPC's own word, before any handler
            outcome.details += refused.value.details() or ""
    outcome.code = grpc.StatusCode.UNKNOWN
    return outcome


async def test_no_persons_name_stands_in_the_log(stage: Stage) -> None:
    outcome = await stage.ask("stream", question("My friend is zora@friends.example."))
    assert outcome.code is grpc.StatusCode.OK
    for subject in ("uma@example.org", "nobody.known@friends.example"):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stage.suite.identity.GetUser(
                identity_pb2.GetUserRequest(subject=subject), metadata=stage.administrator.metadata, timeout=10
            )
    people = re.compile(rb"(?:ada|bob|mia|raj|uma|kim|bud)@example\.org|[a-z.]+@friends\.example")
    assert people.search(b"uma@example.org")
    for name, content in files(stage.home / "audit"):
        assert (hit := people.search(content)) is None, (name, content[hit.start() - 300 : hit.end() + 100])
