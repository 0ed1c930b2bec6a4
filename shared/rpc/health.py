"""Whether a peer is ready, by grpc.health.v1."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.rpc.channel import Channel

_SECONDS = 1.0


def _stub(channel: Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel.get())


async def serving_problem(channel: Channel) -> str:
    """Return why the peer is not serving, or an empty text when it is."""
    try:
        answer = await _stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
    except grpc.aio.AioRpcError as error:
        return f"not reachable ({error.code().name})"
    if not isinstance(answer, health_pb2.HealthCheckResponse):
        return "answers something else"
    return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else "not ready"
