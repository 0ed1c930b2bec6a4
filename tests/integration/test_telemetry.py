"""What an operator sees of a call: standard names, traces across services, no content."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Sequence

import pytest

from tests.integration.stage import Stage, question

pytestmark = pytest.mark.asyncio(loop_scope="session")


def metrics(stage: Stage, service: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{stage.suite.probes[service]}/metrics", timeout=5) as response:
        return str(response.read().decode())


async def scraped(stage: Stage, series: Sequence[str]) -> None:
    """Wait until a scrape shows each of `series`."""
    async with asyncio.timeout(20):
        while not all(name in metrics(stage, "model-server") for name in series):
            await asyncio.sleep(0.1)


async def test_generation_is_measured_by_the_names_of_the_genai_conventions(stage: Stage) -> None:
    stage.spans.clear()
    outcome = await stage.ask("stream")
    assert outcome.end is not None
    spans = [span for span in stage.spans.get_finished_spans() if span.name.endswith("/GenerateStream")]
    (found,) = [dict(span.attributes or {}) for span in spans]
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == "tiny"
    assert found["gen_ai.response.model"] == outcome.end.model_version
    assert found["gen_ai.usage.output_tokens"] == outcome.end.usage.completion_tokens > 0
    assert found["gen_ai.usage.input_tokens"] == outcome.end.usage.prompt_tokens > 0
    assert found["gen_ai.response.finish_reasons"] == ("stop",)
    text = metrics(stage, "model-server")
    for name in (
        'gen_ai_server_time_to_first_token_seconds_count{gen_ai_request_model="tiny"}',
        'gen_ai_server_time_per_output_token_seconds_count{gen_ai_request_model="tiny"}',
        'gen_ai_client_token_usage_sum{gen_ai_request_model="tiny",gen_ai_token_type="output"}',
        'bastide_decisions_total{action="model_server.inference.generate",effect="ALLOW"}',
        "bastide_ready 1.0",
    ):
        assert name in text


async def test_one_trace_goes_through_all_services(stage: Stage) -> None:
    stage.spans.clear()
    await stage.ask("unary")
    spans = stage.spans.get_finished_spans()
    (root,) = [span for span in spans if span.name.endswith("InferenceService/Generate")]
    names = {span.name for span in spans if span.context.trace_id == root.context.trace_id}
    assert {
        "bastide.policy_guard.v1.GuardService/GuardInference",
        "bastide.audit.v1.AuditService/AppendRecords",
    } <= names


async def test_findings_are_counted_by_kind_and_never_with_what_was_found(stage: Stage) -> None:
    await stage.ask("unary", question("My IBAN is DE89 3704 0044 0532 0130 00, and I am Rumpelstiltskin"))
    text = metrics(stage, "policy-guard")
    assert 'bastide_findings_total{action="TOKENISE",kind="PERSONAL_IBAN",place="prompt"}' in text
    for said in ("DE89", "3704 0044", "37040044", "Rumpelstiltskin"):  # shorter digits stand in some measured value
        assert said not in text


async def test_a_scrape_tells_what_is_released_by_which_policy_and_until_when_certificates_last(stage: Stage) -> None:
    # Other suites of this process write into the same registry; each server shows its own again every two seconds.
    shown = (
        'bastide_release_arm_healthy{arm="0",model="tiny"} 1.0',
        'bastide_release_arm_version{arm="0",model="tiny"} 1.0',
        "bastide_policy_generation 1.0",
        'bastide_certificate_expiration_timestamp_seconds{certificate="own"}',
        'bastide_certificate_expiration_timestamp_seconds{certificate="authority"}',
        'bastide_log_appended_total{kind="completed"}',
        "bastide_outbox_oldest_age_seconds 0.0",
    )
    await scraped(stage, shown)
    stage.backend.up = False
    await scraped(stage, ['bastide_release_arm_healthy{arm="0",model="tiny"} 0.0'])
