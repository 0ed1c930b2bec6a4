"""Client channels: mutual TLS, deadlines on every call, trace context, a new connection when certificates change."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pydantic
from opentelemetry import propagate

from shared.config import Settings
from shared.keys import KeyFileRefused
from shared.rpc.tls import Certificates, TlsSettings

# A channel that was replaced finishes its calls for this long.
RETIRE_SECONDS = 30.0


class PeerSettings(Settings):
    """Where another service listens."""

    address: str = pydantic.Field(description="`host:port` of the service.")
    name: str = pydantic.Field(
        default="", description="DNS SAN to verify; empty: `<service>.<trust-domain>`, as the dev CA issues."
    )
    timeout_seconds: float = pydantic.Field(default=2.0, gt=0, le=60, description="Deadline of one call to it.")


class Channel:
    """A channel to one service that callers ask for on each call, so that certificate changes take effect."""

    def __init__(self, settings: PeerSettings, tls: TlsSettings, *, service: str) -> None:
        """Reach `service` (for example `policy-guard`). No connection is made before the first call."""
        self._settings = settings
        self._certificates = Certificates(tls)
        self._name = settings.name or f"{service}.{tls.trust_domain}"
        self._channel: grpc.aio.Channel | None = None
        self._retired: set[asyncio.Task[None]] = set()

    def get(self) -> grpc.aio.Channel:
        """Return the channel to use now. MUST be called from a running event loop."""
        if self._channel is None:
            self._channel = self._open()
            return self._channel
        try:
            renewed = self._open() if self._certificates.changed() else None
        except (OSError, KeyFileRefused):
            # Half-replaced files: what works stays in use until they are whole.
            return self._channel
        if renewed is not None:
            task = asyncio.get_running_loop().create_task(_retire(self._channel))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)
            self._channel = renewed
        return self._channel

    async def close(self) -> None:
        """Close at once, retired channels included."""
        for task in tuple(self._retired):
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()

    def _open(self) -> grpc.aio.Channel:
        key, chain, ca = self._certificates.read()
        credentials = grpc.ssl_channel_credentials(ca, key, chain)
        return grpc.aio.secure_channel(
            self._settings.address,
            credentials,
            options=[
                ("grpc.ssl_target_name_override", self._name),
                ("grpc.enable_retries", 0),  # retries are the client classes' decision, where a call is idempotent
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2_000),
                ("grpc.max_receive_message_length", 8 * 1024 * 1024),
            ],
        )


async def _retire(channel: grpc.aio.Channel) -> None:
    await channel.close(grace=RETIRE_SECONDS)


def outgoing(**metadata: str) -> tuple[tuple[str, str], ...]:
    """Return call metadata with the current trace context."""
    carrier: dict[str, Any] = dict(metadata)
    propagate.inject(carrier)
    return tuple((key, str(value)) for key, value in carrier.items())
