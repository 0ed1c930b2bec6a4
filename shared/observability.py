"""Logs, metrics and traces, with the field's standard names and never with content.

Logs are JSON lines with constant event names; the context bound once per RPC (call id, method, trace id) rides along.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import pydantic
import structlog
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge, Histogram

from shared.config import Settings

# Names of github.com/grpc-ecosystem/go-grpc-middleware's Prometheus provider, so that known dashboards fit.
RPC_HANDLED = Counter(
    "grpc_server_handled_total", "RPCs ended.", ["grpc_service", "grpc_method", "grpc_code", "reason"]
)
RPC_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Seconds from the first byte of a request to the end of the RPC.",
    ["grpc_service", "grpc_method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
RPC_IN_FLIGHT = Gauge("grpc_server_in_flight", "RPCs being handled.", ["grpc_service"])
READY = Gauge("bastide_ready", "1 while the service is ready; /readyz says what keeps it from being so.")
REFUSALS_AGGREGATED = Counter(
    "bastide_refusals_total", "Calls refused before authentication; recorded in aggregate.", ["reason"]
)


class ObservabilitySettings(Settings):
    """Where logs and traces go."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = pydantic.Field(
        default="INFO", description="DEBUG, INFO, WARNING or ERROR; to standard error."
    )
    otlp_endpoint: str | None = pydantic.Field(
        default=None,
        description="OTLP/gRPC endpoint for traces, for example `https://collector:4317`; none: no traces.",
    )


def configure(settings: ObservabilitySettings, *, service: str) -> None:
    """Set up logging and tracing of this process. MUST be called once, before the first log line."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    # Third-party loggers may format request data: only their warnings, and only through the same JSON.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _exception_type_only,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    # Without an endpoint spans are not recorded but still carry ids, which tie the log lines of all services together.
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: f"bastide-{service}"}),
        sampler=ALWAYS_OFF if settings.otlp_endpoint is None else ALWAYS_ON,
    )
    if settings.otlp_endpoint is not None:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint)))
    trace.set_tracer_provider(provider)


def _exception_type_only(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace exceptions by type and place: their text may hold what a caller sent."""
    error = event.pop("error", None)
    if isinstance(error, BaseException):
        frames = []
        traceback = error.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            frames.append(f"{code.co_qualname}:{traceback.tb_lineno}")
            traceback = traceback.tb_next
        event["error_type"] = type(error).__name__
        event["error_frames"] = frames[-12:]
    elif error is not None:
        event["error"] = error
    return event
