"""A log leaf read back: who did what, when, and how it ended, in plain words."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from bastide.types.v1 import decision_pb2
from shared.cli.failures import Failure
from shared.cli.render import moment, name_of

_MAX_LEAF_BYTES = 16 * 1024
_KINDS = {
    "authorised": "a call was allowed and may begin",
    "completed": "a call ended well: its answer was released (released, not: delivered)",
    "denied": "policy denied a call",
    "refused": "a call was refused before policy was asked",
    "cut": "an answer was cut off by the guard",
    "cancelled": "the caller went away or its time was up",
    "failed": "a call failed on the suite's side",
    "interrupted": "a call was allowed and its end never came",
    "access": "a guarded read was allowed",
    "change": "a guarded change was allowed and is about to be made",
    "changed": "a guarded change ended",
    "sign_in": "somebody signed in, enrolled or got a token",
    "system": "the suite did something that no caller asked for",
}
_BINDINGS = {
    "MODEL_BINDING_LOADED": "loaded: the model server read and verified these very bytes",
    "MODEL_BINDING_DECLARED": "declared: a remote server says so",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """The parsed JSON of a leaf. What it says is only as good as the proof that it stands in the log."""

    document: dict[str, Any]

    @classmethod
    def parse(cls, data: bytes) -> Leaf:
        """Parse the leaf's bytes. Raises Failure unless it is a leaf of version 1."""
        try:
            document = json.loads(data) if len(data) <= _MAX_LEAF_BYTES else None
        except (ValueError, RecursionError):
            document = None
        shaped = isinstance(document, dict) and document.get("version") == 1
        record = document.get("record") if shaped and isinstance(document, dict) else None
        parts = [record.get(key) for key in ("data", "fields")] if isinstance(record, dict) else [None]
        if not isinstance(document, dict) or not all(isinstance(part, dict) for part in parts):
            raise Failure("the leaf is not one that this version understands", title="not a log leaf")
        return cls(document=document)

    @property
    def data(self) -> dict[str, Any]:
        """What the writer stated: a Record in proto3 JSON, without what is kept outside the leaf."""
        data: dict[str, Any] = self.document["record"]["data"]
        return data

    def field(self, name: str) -> str:
        """Return a searchable field of the entry, empty when it has none."""
        return str(self.document["record"]["fields"].get(name, ""))

    def commitments(self) -> dict[str, bytes]:
        """Return the digest of each commitment by its name."""
        found = self.data.get("commitments", [])
        return {str(item["name"]): base64.b64decode(item["digest"]) for item in found}

    def decisions(self) -> dict[str, decision_pb2.SignedDecision]:
        """Return what the guard signed, as the leaf embeds it: `decision`, and `verdict` on a whole answer."""
        data = self.data
        found = {"decision": data.get("decision"), "verdict": data.get("inference", {}).get("verdict")}
        try:
            return {
                name: json_format.ParseDict(signed, decision_pb2.SignedDecision(), max_recursion_depth=4)
                for name, signed in found.items()
                if signed
            }
        except json_format.ParseError:
            raise Failure("the leaf embeds something that is not a decision", title="not a log leaf") from None

    def facts(self) -> list[tuple[str, str]]:
        """Return what the leaf says, as names and values; empty values say nothing."""
        data, principal = self.data, self.data.get("principal", {})
        kind = self.field("kind")
        return [
            ("what", f"{kind}: {_KINDS.get(kind, 'a kind that this version does not know')}"),
            ("when", str(self.document.get("time", ""))),
            ("method", str(data.get("method", ""))),
            ("on", str(data.get("resource", ""))),
            ("outcome", self.field("outcome")),
            ("who", self.field("principal") and f"pseudonym {self.field('principal')}"),
            ("as", _joined(principal.get("roles"))),
            ("through", str(principal.get("workload", ""))),
            ("second factor", _joined(principal.get("amr"))),
            ("tenant", self.field("tenant")),
            ("written by", str(self.document.get("writer", ""))),
            *self._inference(),
            *self._decision(),
            ("call", self.field("call_id")),
            *((f"fact {name}", str(value)) for name, value in sorted(data.get("facts", {}).items())),
            ("committed to", ", ".join(sorted(self.commitments()))),
        ]

    def _inference(self) -> Iterator[tuple[str, str]]:
        about = self.data.get("inference", {})
        usage = about.get("usage", {})
        binding = about.get("binding", "")
        yield "model", str(about.get("model_version", ""))
        yield "model digest", str(about.get("model_digest", ""))
        yield "model bound", _BINDINGS.get(binding, str(binding))
        yield "purpose", str(about.get("purpose", ""))
        if usage:
            yield "tokens", f"{usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)}"
        yield "ended", str(about.get("finish_reason", "")).removeprefix("FINISH_REASON_").lower()
        for item in about.get("findings", []):
            where = "answer" if item.get("output") else "prompt"
            action = str(item.get("action", "refused")).removeprefix("CONTENT_ACTION_").lower()
            yield f"found in the {where}", f"{item.get('kind')} × {item.get('count', 0)}: {action}"

    def _decision(self) -> Iterator[tuple[str, str]]:
        """The guard's decision that the leaf embeds; `shared.cli.receipt` checks its own signature."""
        signed = self.decisions().get("decision")
        if signed is None:
            return
        decision = decision_of(signed)
        effect = name_of(decision_pb2.Effect, decision.effect, "EFFECT_")
        yield "decision", f"{decision.decision_id}: {effect}, {moment(decision.decided_at)}"
        yield "policy", decision.policy_revision
        yield "reasons", "; ".join(f"{item.code}: {item.message}" for item in decision.reasons)


def decision_of(signed: decision_pb2.SignedDecision) -> decision_pb2.Decision:
    """Return what was signed. Raises Failure when it is no decision."""
    try:
        return decision_pb2.Decision.FromString(signed.decision)
    except DecodeError:
        raise Failure("the leaf embeds something that is not a decision", title="not a log leaf") from None


def _joined(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else ""
