"""The question about an inference call: findings are told once, so that a long conversation fits into a record."""

from __future__ import annotations

import datetime as dt

import rfc8785

from services.policy_guard.decisions import MAX_INPUT_BYTES
from services.policy_guard.facts import InferenceQuestion, ModelFacts, PromptFinding, inference_input
from shared.identity.principal import Kind, Principal, Workload

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KINDS = ("PERSONAL_EMAIL", "PERSONAL_IBAN", "PERSONAL_PHONE", "PERSONAL_CARD", "SECRET_TOKEN")


def question(findings: list[PromptFinding]) -> InferenceQuestion:
    return InferenceQuestion(
        principal=Principal(
            subject="uma@example.org",
            kind=Kind.PERSON,
            tenant="default",
            roles=("user",),
            amr=("pwd",),
            authenticated_at=NOW,
            workload=Workload(spiffe_id="spiffe://bastide.local/cli", certificate_sha256=b"c" * 32),
        ),
        acknowledged_use_policy="1",
        method="/bastide.model_server.v1.InferenceService/Generate",
        model=ModelFacts(
            name="tiny", version="models/tiny/versions/1", loaded=True, classification="INTERNAL", permitted_purposes=()
        ),
        purpose="internal-assistant",
        parameters={},
        findings=findings,
    )


def finding(kind: str, score: float) -> PromptFinding:
    return PromptFinding(kind=kind, category=kind.partition("_")[0], detector="d", label="", score=score)


def test_findings_of_one_kind_detector_and_label_are_one_with_the_highest_score() -> None:
    document = inference_input(
        question([finding("PERSONAL_IBAN", 0.5), finding("PERSONAL_IBAN", 0.9), finding("SECRET_TOKEN", 1.0)]), "a", NOW
    )
    assert [(item["kind"], item["score"], item["count"]) for item in document["findings"]] == [
        ("PERSONAL_IBAN", 0.9, 2),
        ("SECRET_TOKEN", 1.0, 1),
    ]


def test_a_long_conversation_full_of_findings_fits_into_a_record() -> None:
    findings = [finding(kind, 0.9) for _ in range(128) for kind in KINDS]
    assert len(rfc8785.dumps(inference_input(question(findings), "a", NOW))) < MAX_INPUT_BYTES / 4
