"""An inference call as its contract, its backend and its guard spell it."""

from __future__ import annotations

from bastide.model_server.v1 import inference_pb2
from bastide.policy_guard.v1 import guard_pb2
from bastide.types.v1 import content_pb2, principal_pb2
from services.model_server.backends import Backend, Finish, GenerationRequest, check_request
from services.model_server.serving import Served
from shared import errors
from shared.rpc.call import Call

ROLES = {content_pb2.ROLE_SYSTEM: "system", content_pb2.ROLE_USER: "user", content_pb2.ROLE_ASSISTANT: "assistant"}
FINISH = {Finish.STOP: content_pb2.FINISH_REASON_STOP, Finish.LENGTH: content_pb2.FINISH_REASON_LENGTH}


def generation_request(
    wanted: inference_pb2.InferenceCall, backend: Backend, seconds: float, default_tokens: int, *, stream: bool
) -> GenerationRequest:
    """Return the request with the caller's parameters, checked; messages come later. Raises InvalidArgument."""
    given = wanted.parameters
    most = backend.abilities.max_context
    request = GenerationRequest(
        messages=(),
        max_new_tokens=min(given.max_new_tokens or default_tokens, most),
        timeout=seconds,
        temperature=given.temperature if given.HasField("temperature") else None,
        top_p=given.top_p if given.HasField("top_p") else None,
        top_k=given.top_k if given.HasField("top_k") else None,
        seed=given.seed if given.HasField("seed") else None,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        stop=tuple(given.stop),
        whole=not stream,
    )
    try:
        check_request(request, backend.abilities)
    except errors.InvalidArgument as error:
        raise errors.InvalidArgument(error.message, field=f"call.parameters.{error.field}") from None
    return request


def opening(call: Call, wanted: inference_pb2.InferenceCall, served: Served, *, stream: bool) -> guard_pb2.OpenSession:
    manifest = served.version.manifest
    return guard_pb2.OpenSession(
        token=call.token or "",
        workload=principal_pb2.Workload(
            spiffe_id=call.caller.spiffe_id, certificate_sha256=call.caller.certificate_sha256
        ),
        method=call.method,
        call_id=call.call_id,
        model=guard_pb2.ModelFacts(
            name=wanted.model,
            version=manifest.name,
            loaded=manifest.loaded,
            classification=principal_pb2.Classification.Value(f"CLASSIFICATION_{manifest.classification}"),
            permitted_purposes=manifest.permitted_purposes,
            control_tokens_safe=manifest.loaded,
        ),
        purpose=wanted.purpose,
        messages=wanted.messages,
        parameters=wanted.parameters,
        stream=stream,
        request_id=wanted.request_id,
    )
