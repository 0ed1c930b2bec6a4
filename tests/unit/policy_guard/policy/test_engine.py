import asyncio
import json
import os
import resource
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.policy_guard import opa
from services.policy_guard.bundle import Bundle
from services.policy_guard.documents import BundleError
from services.policy_guard.engine import MAX_REVISIONS, PolicyEngine
from services.policy_guard.engines import choose_engine
from services.policy_guard.result import Effect, Question
from shared.errors import FailedPrecondition, GuardUnavailable
from tests import signals
from tests.unit.policy_guard.policy.conftest import DEFAULT, opa_binary, soon, vectors, with_data, with_module

ALLOWED = next(case["input"] for case in vectors("access") if case["effect"] == "ALLOW")
DENIED = next(case["input"] for case in vectors("access") if case["effect"] == "DENY")
OTHER = with_data({"bastide": {"mfa": {"max_age_seconds": 60}}})


def processes(engine: PolicyEngine, revision: str) -> int:
    evaluator: Any = engine._loaded[revision].evaluator
    supervisor = evaluator._supervisor if hasattr(evaluator, "_supervisor") else evaluator._worker._supervisor
    return supervisor._process.pid


async def ask(engine: PolicyEngine, *, seconds: float = 20.0, document: dict = ALLOWED) -> Effect:
    answer = await engine.evaluate(Question.ACCESS, document, revision=engine.current, deadline=soon(seconds))
    return answer.effect


async def until_answered(engine: PolicyEngine) -> None:
    deadline = soon()
    while True:
        try:
            assert await ask(engine) is Effect.ALLOW
        except GuardUnavailable:
            assert asyncio.get_running_loop().time() < deadline
        else:
            return


async def test_one_allowed_and_one_denied_decision(engine: PolicyEngine) -> None:
    await engine.load(DEFAULT)
    assert await ask(engine) is Effect.ALLOW
    assert await ask(engine, document=DENIED) is Effect.DENY


async def test_many_questions_at_once_each_get_their_own_answer(engine: PolicyEngine) -> None:
    await engine.load(DEFAULT)
    documents = [ALLOWED, DENIED] * 20
    effects = await asyncio.gather(*(ask(engine, document=document) for document in documents))
    assert effects == [Effect.ALLOW, Effect.DENY] * 20


async def test_a_revision_that_is_not_loaded_is_no_answer(engine: PolicyEngine) -> None:
    with pytest.raises(GuardUnavailable):
        engine.hold()
    await engine.load(DEFAULT)
    with pytest.raises(GuardUnavailable):
        await engine.evaluate(Question.ACCESS, ALLOWED, revision=OTHER.revision, deadline=soon())
    with pytest.raises(GuardUnavailable):
        engine.hold(OTHER.revision)


async def test_a_session_keeps_its_revision_over_a_swap(engine: PolicyEngine) -> None:
    await engine.load(DEFAULT)
    with engine.hold() as held:
        await engine.load(OTHER)
        assert engine.current == OTHER.revision
        # 100 seconds after the second factor: fine under the former revision, too late under the new one.
        assert (await held.evaluate(Question.ACCESS, ALLOWED, deadline=soon())).allowed
        assert await ask(engine) is Effect.DENY
        former = processes(engine, DEFAULT.revision)
    await asyncio.gather(*engine._ending)
    with pytest.raises(GuardUnavailable):
        await held.evaluate(Question.ACCESS, ALLOWED, deadline=soon())
    with pytest.raises(ProcessLookupError):
        os.kill(former, 0)


async def test_loading_the_held_revision_again_rolls_back_to_it(engine: PolicyEngine) -> None:
    await engine.load(DEFAULT)
    held = engine.hold()
    before = processes(engine, DEFAULT.revision)
    await engine.load(OTHER)
    await engine.load(DEFAULT)
    assert engine.current == DEFAULT.revision
    assert processes(engine, DEFAULT.revision) == before
    held.release()
    held.release()
    assert await ask(engine) is Effect.ALLOW


async def test_revisions_alive_at_once_are_bounded() -> None:
    engine = choose_engine(engine="embedded")
    try:
        for age in range(1, MAX_REVISIONS + 1):
            await engine.load(with_data({"bastide": {"mfa": {"max_age_seconds": age}}}))
            engine.hold()
        with pytest.raises(FailedPrecondition):
            await engine.load(DEFAULT)
        assert await ask(engine) is Effect.DENY
    finally:
        await engine.close()


async def test_a_hung_engine_ends_in_an_error_and_is_replaced(engine: PolicyEngine) -> None:
    await engine.load(DEFAULT)
    hung = processes(engine, DEFAULT.revision)
    signals.send(hung, signal.SIGSTOP)
    started = asyncio.get_running_loop().time()
    with pytest.raises(GuardUnavailable):
        await ask(engine, seconds=0.3)
    assert asyncio.get_running_loop().time() - started < 5
    await until_answered(engine)
    assert processes(engine, DEFAULT.revision) != hung


async def test_a_killed_engine_comes_back(engine: PolicyEngine) -> None:
    await engine.load(DEFAULT)
    killed = processes(engine, DEFAULT.revision)
    os.kill(killed, signal.SIGKILL)
    await until_answered(engine)
    assert processes(engine, DEFAULT.revision) != killed


async def test_a_policy_that_never_ends_is_cut_at_the_deadline(engine: PolicyEngine) -> None:
    loop = "count([1 | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); [a, b] == [0, 0]]) >= 0"
    slow = with_module(
        "bastide/access/access.rego",
        ("default role_allows := false", f"default role_allows := false\n\nslow if {{\n\t{loop}\n}}"),
        ("\tinput_ok\n\trole_allows\n", "\tinput_ok\n\tslow\n\trole_allows\n"),
    )
    await engine.load(slow)
    with pytest.raises(GuardUnavailable):
        await ask(engine, seconds=0.3)


async def test_a_policy_that_takes_all_memory_is_no_answer_and_harms_nothing_else(engine: PolicyEngine) -> None:
    longer = "replace(" * 4 + "input.resource.name" + ', "a", input.resource.name)' * 4
    greedy = with_module(
        "bastide/access/access.rego",
        ("\tinput_ok\n\trole_allows\n", f'\tinput_ok\n\t{longer} != ""\n\trole_allows\n'),
    )
    await engine.load(DEFAULT)
    named = {**ALLOWED, "resource": {**ALLOWED["resource"], "name": "a" * 250}}
    async with engine.trial(greedy) as trial:
        with pytest.raises(GuardUnavailable):
            await trial(Question.ACCESS, named, deadline=soon())
        assert await ask(engine) is Effect.ALLOW
    limit = resource.RLIMIT_DATA if engine.name == "opa" else resource.RLIMIT_AS
    assert 0 < resource.prlimit(processes(engine, DEFAULT.revision), limit)[1] <= 1 << 30


async def test_only_one_revision_is_tried_at_a_time(engine: PolicyEngine) -> None:
    async with engine.trial(DEFAULT):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), engine.trial(DEFAULT):
                pass
    async with engine.trial(DEFAULT) as trial:
        assert (await trial(Question.ACCESS, ALLOWED, deadline=soon())).effect is Effect.ALLOW


async def test_an_evaluation_error_is_no_answer_and_harms_nothing_else(engine: PolicyEngine) -> None:
    broken = with_module(
        "bastide/access/access.rego",
        ("\tinput_ok\n\trole_allows\n", "\tinput_ok\n\tformat_int(input.action, 10) != \n\trole_allows\n"),
    )
    await engine.load(broken)
    for _ in range(2):
        with pytest.raises(GuardUnavailable):
            await ask(engine)
        answer = await engine.evaluate(Question.ACCESS, {}, revision=broken.revision, deadline=soon())
        assert answer.effect is Effect.DENY


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.bastide.revision", '"another"'),
        ('"limits": [],', ""),
        ('"limits": [],', '"limits": [], "more": true,'),
        ('"obligations": {},', '"obligations": {"more": true},'),
        ('"effect": effect,', '"effect": true,'),
        ("decision := {", "other := {"),
        ('\t"revision": data.bastide.revision,\n}', '\t"revision": data.bastide.revision,\n} if {\n\tinput.time\n}'),
        ('default effect := "DENY"', 'default effect := "ALLOW"'),
    ],
    ids=["wrong revision", "missing", "extra", "obligations", "not an effect", "no rule", "undefined", "allows {}"],
)
async def test_a_policy_that_does_not_answer_as_it_must_is_never_served(
    engine: PolicyEngine, old: str, new: str
) -> None:
    await engine.load(DEFAULT)
    with pytest.raises(GuardUnavailable):
        await engine.load(with_module("bastide/access/access.rego", (old, new)))
    assert engine.current == DEFAULT.revision
    assert await ask(engine) is Effect.ALLOW


@pytest.mark.parametrize(
    "line",
    [
        "x := http.send({})",
        "x := opa.runtime()",
        "x := time.now_ns()",
        'x := rand.intn("a", 5)',
        'x := io.jwt.decode("a")',
        'x := crypto.sha256("a")',
        "x := data.bastide.nowhere.f(1)",
        'x := $"{1}"',
        "x if count(input) == 1 with input as {}",
        "x := trace(1)",
        "x := {",
    ],
)
async def test_what_an_engine_lacks_fails_the_load(line: str) -> None:
    bad = Bundle(
        modules={**DEFAULT.modules, "bastide/extra/extra.rego": f"package bastide.extra\n\n{line}\n"}, data=DEFAULT.data
    )
    engine = choose_engine(engine="embedded")
    with pytest.raises(BundleError):
        await engine.load(bad)
    assert engine.current is None
    await engine.close()


async def test_a_package_of_two_files_or_outside_its_directory_fails_the_load() -> None:
    engine = choose_engine(engine="embedded")
    for path in ("bastide/access/more.rego", "bastide/elsewhere/access.rego"):
        bad = Bundle(modules={**DEFAULT.modules, path: "package bastide.access\n"}, data=DEFAULT.data)
        with pytest.raises(BundleError):
            await engine.load(bad)
    await engine.close()


async def test_a_closed_engine_answers_nothing(engine: PolicyEngine) -> None:
    await engine.load(DEFAULT)
    pid = processes(engine, DEFAULT.revision)
    await engine.close()
    with pytest.raises(GuardUnavailable):
        await engine.evaluate(Question.ACCESS, ALLOWED, revision=DEFAULT.revision, deadline=soon())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


class Scripted:
    """An evaluator that denies the probe and then answers as told."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.closed = False

    async def evaluate(self, question: Question, document: Any, *, deadline: float) -> object:
        if not document:
            return denial()
        return self.answer

    async def close(self) -> None:
        self.closed = True


def denial(**change: object) -> dict[str, object]:
    reason = {"code": "X", "message": "x", "public": False}
    answer = {"effect": "DENY", "reasons": [reason], "obligations": {}, "limits": [], "revision": DEFAULT.revision}
    return answer | change


@pytest.mark.parametrize(
    "answer",
    ["<undefined>", None, 1, [], {}, [denial(), denial()], denial(revision="sha256:0"), denial(extra=1)],
    ids=repr,
)
async def test_no_evaluator_can_answer_anything_but_one_result(answer: object) -> None:
    evaluator = Scripted(answer)

    async def start(_: Bundle) -> Scripted:
        return evaluator

    engine = PolicyEngine("scripted", start=start)
    await engine.load(DEFAULT)
    with pytest.raises(GuardUnavailable):
        await ask(engine)
    await engine.close()
    assert evaluator.closed


@pytest.fixture
async def fake_opa(tmp_path: Path) -> AsyncIterator[tuple[opa.OpaEvaluator, Path]]:
    program = tmp_path / "program.py"
    program.write_bytes(Path(__file__).with_name("fake_opa.py").read_bytes())
    binary = tmp_path / "opa"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
    binary.chmod(0o700)
    evaluator = await opa.start(DEFAULT, binary=binary)
    yield evaluator, tmp_path / "reply"
    await evaluator.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"hang\n",
        b"close\n",
        b"200\n",
        b"200\nnot json",
        b"200\n[]",
        b"200\n{}",
        b'200\n{"result": {}, "result": {}}',
        b'200\n{"result": {}, "another": {}}',
        b'200\n{"result": NaN}',
        b'500\n{"code": "internal_error"}',
        b'400\n{"result": {}}',
        b'200\n{"result": "' + b"x" * (1 << 20) + b'"}',
        b"200\n" + b"[" * 100_000,
    ],
    ids=lambda reply: reply[:32].decode().replace("\n", " "),
)
async def test_an_opa_that_talks_nonsense_gives_no_answer(
    fake_opa: tuple[opa.OpaEvaluator, Path], reply: bytes
) -> None:
    evaluator, script = fake_opa
    script.write_bytes(reply)
    with pytest.raises(GuardUnavailable):
        await evaluator.evaluate(Question.ACCESS, ALLOWED, deadline=soon(0.5))
    script.write_bytes(b"200\n" + json.dumps({"result": denial()}).encode())
    assert await evaluator.evaluate(Question.ACCESS, ALLOWED, deadline=soon()) == denial()


async def test_opa_listens_where_only_this_user_reaches_it_and_leaves_nothing() -> None:
    evaluator = await opa.start(DEFAULT, binary=opa_binary())
    directory = evaluator._directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(evaluator._socket.stat().st_mode)
    await evaluator.close()
    assert not directory.exists()


async def test_a_program_that_is_no_opa_does_not_start(tmp_path: Path) -> None:
    binary = tmp_path / "opa"
    binary.write_text("#!/bin/sh\nexit 1\n")
    binary.chmod(0o700)
    with pytest.raises(GuardUnavailable):
        await opa.start(DEFAULT, binary=binary)


def test_the_engine_is_the_configured_one_else_opa_where_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPA_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with capture_logs() as logs:
        assert choose_engine().name == "embedded"
    assert logs == [{"event": "policy_engine_chosen", "engine": "embedded", "configured": "auto", "log_level": "info"}]
    with pytest.raises(FailedPrecondition):
        choose_engine(engine="opa")
    with pytest.raises(FailedPrecondition):
        choose_engine(opa_binary=tmp_path / "opa")
    binary = tmp_path / "opa"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o700)
    assert choose_engine().name == "opa"
    assert choose_engine(engine="opa").name == "opa"
    assert choose_engine(engine="embedded").name == "embedded"
    monkeypatch.setenv("OPA_BIN", str(tmp_path / "gone"))
    with pytest.raises(FailedPrecondition):
        choose_engine()
