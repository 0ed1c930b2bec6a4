"""bastide.model_server.v1.InferenceService."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from bastide.model_server.v1 import inference_pb2
from services.model_server.inference import Inference
from shared.errors import Error
from shared.rpc.call import Call


class InferenceService:
    """Unary and streamed inference are one run, collected or passed on."""

    def __init__(self, inference: Inference) -> None:
        """Serve `inference`."""
        self._inference = inference

    async def Generate(self, request: inference_pb2.GenerateRequest, call: Call) -> inference_pb2.GenerateResponse:
        """See the contract."""
        parts: list[str] = []
        async with contextlib.aclosing(self._inference.run(call, request.call, stream=False)) as events:
            async for event in events:
                if isinstance(event, inference_pb2.GenerationChunk):
                    parts.append(event.text)
                elif isinstance(event, inference_pb2.GenerationEnd):
                    return inference_pb2.GenerateResponse(text="".join(parts), end=event)
        raise Error("the call ended without an end")

    async def GenerateStream(
        self, request: inference_pb2.GenerateStreamRequest, call: Call
    ) -> AsyncGenerator[inference_pb2.GenerateStreamResponse, None]:
        """See the contract."""
        async with contextlib.aclosing(self._inference.run(call, request.call, stream=True)) as events:
            async for event in events:
                match event:
                    case inference_pb2.GenerationStart():
                        yield inference_pb2.GenerateStreamResponse(start=event)
                    case inference_pb2.GenerationChunk():
                        yield inference_pb2.GenerateStreamResponse(chunk=event)
                    case inference_pb2.GenerationEnd():
                        yield inference_pb2.GenerateStreamResponse(end=event)
