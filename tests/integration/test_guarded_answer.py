"""One allowed and one denied call, end to end through all three services."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from bastide.model_server.v1 import inference_pb2, inference_pb2_grpc
from bastide.types.v1 import content_pb2
from shared.transparency.note import Verifier
from shared.transparency.proof import TlogProof
from tests.fakes.tiny_model import build_tiny_model
from tests.suite import running


def question(text: str, *, purpose: str = "internal-assistant") -> inference_pb2.InferenceCall:
    return inference_pb2.InferenceCall(
        model="tiny",
        purpose=purpose,
        messages=[content_pb2.Message(role=content_pb2.ROLE_USER, content=text)],
        parameters=content_pb2.SamplingParameters(max_new_tokens=12, temperature=0),
    )


async def test_allowed_call_streams_with_a_receipt_and_denied_call_releases_nothing(tmp_path) -> None:
    build_tiny_model(tmp_path / "models" / "tiny")
    async with running(tmp_path / "home", model_server={"IMPORT_ROOTS": f'["{tmp_path / "models"}"]'}) as suite:
        ada, _ = await suite.bootstrap()
        manager = await suite.person(ada, "mia@example.org", "model-manager")
        approver = await suite.person(ada, "raj@example.org", "release-approver")
        user = await suite.person(ada, "uma@example.org", "user")
        version = await suite.import_model(manager, "directory:tiny")
        await suite.release(approver, version)
        stub = inference_pb2_grpc.InferenceServiceStub(suite.channel("model-server"))

        text, end = "", None
        async for event in stub.GenerateStream(
            inference_pb2.GenerateStreamRequest(call=question("hello there")), metadata=user.metadata, timeout=30
        ):
            if event.HasField("chunk"):
                text += event.chunk.text
            elif event.HasField("end"):
                end = event.end
        assert end is not None
        assert end.model_version == version
        vkey = Verifier.parse((suite.home / "trust" / "log.vkey").read_text().strip())
        TlogProof.parse(end.receipt.proof).verify(end.receipt.leaf, vkey)
        unary = await stub.Generate(
            inference_pb2.GenerateRequest(call=question("hello there")), metadata=user.metadata, timeout=30
        )
        assert unary.text == text

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Generate(
                inference_pb2.GenerateRequest(call=question("hello", purpose="weather")),
                metadata=user.metadata,
                timeout=30,
            )
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        status = rpc_status.from_call(refused.value)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.metadata["decision_id"]
