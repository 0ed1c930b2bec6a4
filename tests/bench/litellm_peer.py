"""The LiteLLM proxy with its own content filter on, from a venv of its own: the peer of the guarded call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import openai

from tests.bench.processes import child
from tests.fakes.remote_model import MODEL as REMOTE
from tests.suite import free_ports

MODEL = "canned"
MISSING = (
    "the LiteLLM proxy is not here: LITELLM_VENV names no venv with litellm\\[proxy]; measured earlier, on two cores: "
    "+18 ms unary, +49 ms streamed, 70 calls/s and 17 streams/s at 8 callers"
)
FILTER = "content-filter"
# The prebuilt patterns for what our own detectors look for. Its keyword categories stay off.
PATTERNS = (
    *("email", "us_ssn", "us_phone", "iban", "ipv4", "ipv6", "fr_nir", "visa", "mastercard", "amex", "discover"),
    *("aws_access_key", "aws_secret_key", "github_token", "slack_token", "generic_api_key"),
)


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Where the proxy listens, and its key."""

    url: str
    key: str


@contextlib.asynccontextmanager
async def running(venv: Path, folder: Path, *, backend: str) -> AsyncIterator[Proxy]:
    """Run the proxy before `backend`, one worker as by default, for the length of the block."""
    (port,) = free_ports(1)
    proxy = Proxy(url=f"http://127.0.0.1:{port}/v1", key=f"sk-{secrets.token_hex(16)}")
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(_config(proxy, backend)))  # JSON is YAML
    environ = {
        # Where OpenTelemetry is missing it retries that import at every call: without bytecode it would compile each time.
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PATH": f"{venv}/bin:{os.environ['PATH']}",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        # As its documentation wants it in production.
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
    }
    command = (f"{venv}/bin/litellm", "--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    with child(*command, environ=environ, log=folder / "litellm.log") as process:
        async with asyncio.timeout(120):
            while not await _filtering(proxy):
                assert process.poll() is None, (folder / "litellm.log").read_text()[-2000:]
                await asyncio.sleep(0.5)
        yield proxy


def _config(proxy: Proxy, backend: str) -> dict[str, object]:
    return {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {"model": f"openai/{REMOTE}", "api_base": backend, "api_key": "none"},
            }
        ],
        "general_settings": {"master_key": proxy.key},
        "guardrails": [
            {
                "guardrail_name": FILTER,
                "litellm_params": {
                    "guardrail": "litellm_content_filter",
                    "mode": ["pre_call", "post_call"],
                    "default_on": True,
                    "patterns": [
                        {"pattern_type": "prebuilt", "pattern_name": name, "action": "MASK"} for name in PATTERNS
                    ],
                },
            }
        ],
    }


async def _filtering(proxy: Proxy) -> bool:
    """Say whether the proxy answers and names its filter as applied; an answer without it would measure less."""
    async with openai.AsyncOpenAI(base_url=proxy.url, api_key=proxy.key, max_retries=0, timeout=30) as client:
        try:
            answer = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": "Hello"}]
            )
        except openai.APIConnectionError:
            return False
    assert FILTER in answer.headers.get("x-litellm-applied-guardrails", ""), "the content filter is not on"
    return True
