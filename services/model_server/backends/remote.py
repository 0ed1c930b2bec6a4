"""What all remote model servers share: limits, deadlines, and distrust of what they send.

A remote server is believed about nothing that can be checked: an answer must name the model that was asked for,
come as one text, end with a reason and state its usage, and stay within what was asked.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import ipaddress
import re
import ssl
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import structlog

from services.model_server.backends import Abilities, Binding, Finish, GenerationRequest, Piece, check_request
from services.model_server.backends.admission import Admission
from services.model_server.backends.deadline import expiring
from services.model_server.stops import StopScanner
from services.model_server.template import MAX_PROMPT_CHARACTERS, ROLES, Message
from shared import errors

_log = structlog.get_logger(__name__)
_FINISHES = {
    "stop": Finish.STOP,
    "eos_token": Finish.STOP,
    "stop_sequence": Finish.STOP,
    "length": Finish.LENGTH,
}
_MAX_STOPS = 4  # OpenAI's API takes no more
_MAX_TOKEN_CHARACTERS = 256
_MESSAGE_TOKENS = 32  # more than any known template adds to a message
# One event of a stream, or an answer that comes whole: as JSON it takes many times its bytes in memory.
_MAX_EVENT_BYTES = 4 << 20
_EVENT_END = re.compile(rb"\n\n|\r\n\r\n")


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """A remote model server. `model` is the name under which it serves the model. Times are in seconds.

    `seed` and `penalties` say whether that server honours them. `url` is HTTPS unless it leads to this host.
    """

    url: str
    model: str
    max_context: int
    api_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    seed: bool = False
    penalties: bool = False
    max_running: int = 64
    max_waiting: int = 64
    connect_timeout: float = 5.0
    probe_interval: float = 10.0

    def __post_init__(self) -> None:
        """Refuse an address that would carry prompts in the clear."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise ValueError("the address of a model server is http(s)://host[:port][/path]")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError("a model server beyond this host needs https")


@dataclass(frozen=True, kw_only=True)
class Delta:
    """One event of a remote answer, as its client library parsed it; every field is still to be checked."""

    text: object = None
    finish: object = None
    completion_tokens: object = None
    prompt_tokens: object = None
    model: object = None


class RemoteBackend(abc.ABC):
    """A `Backend` over HTTP."""

    def __init__(self, settings: RemoteSettings) -> None:
        """Prepare to call the server; nothing is sent yet."""
        self._settings = settings
        self._admission = Admission(
            pages=settings.max_running, places=settings.max_running, max_waiting=settings.max_waiting
        )
        self._abilities = Abilities(
            binding=Binding.DECLARED,
            max_context=settings.max_context,
            exact_count=False,
            max_stops=_MAX_STOPS,
            seed=settings.seed,
            penalties=settings.penalties,
        )
        self._healthy = False
        self._closing = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def abilities(self) -> Abilities:
        """What the server is configured to honour."""
        return self._abilities

    async def start(self) -> None:
        """Probe the server once; raises `BackendUnavailable` unless it serves the model."""
        await self.check()
        if not self._healthy:
            raise errors.BackendUnavailable("the model server does not answer or serves another model")
        self._watch = asyncio.create_task(self._watch_server())

    async def close(self) -> None:
        """Stop probing and drop connections."""
        self._closing.set()
        if self._watch is not None:
            await self._watch
        self._healthy = False
        await self._disconnect()

    def healthy(self) -> bool:
        """Say whether the last probe succeeded."""
        return self._healthy

    async def check(self) -> None:
        """Probe the server once and note the outcome."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                with self._faults():
                    self._healthy = self._settings.model in await self._served_models()
        except (errors.Error, TimeoutError):
            self._healthy = False

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return an upper bound: a byte-level token holds at least one byte. Raises `InvalidArgument`."""
        _check_messages(messages)
        return _most_prompt_tokens(messages)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """See `Backend.generate`."""
        check_request(request, self._abilities)
        _check_messages(request.messages)
        if self._closing.is_set():
            raise errors.BackendUnavailable("the backend is closed")
        answer = _Answer(request, self._settings.model)
        deadline = asyncio.get_running_loop().time() + request.timeout
        async with contextlib.AsyncExitStack() as held:
            async with expiring(deadline):
                await held.enter_async_context(self._admission.hold(1))
                with self._faults():
                    deltas = await held.enter_async_context(self._open(request))
            while not answer.stopped:
                async with expiring(deadline):
                    with self._faults():
                        delta = await anext(deltas, None)
                if delta is None:
                    break
                text = answer.take(delta)
                if text:
                    yield Piece(text=text, tokens=0)
            yield answer.last()

    @abc.abstractmethod
    def _open(self, request: GenerationRequest) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """Send `request` and give its events; leaving the block drops the connection."""

    @abc.abstractmethod
    async def _served_models(self) -> Sequence[str]:
        """Return the names of the models that the server says it serves."""

    @abc.abstractmethod
    def _status(self, fault: Exception) -> int | None:
        """Return the HTTP status with which the server refused a request, if `fault` says one."""

    async def _disconnect(self) -> None:  # noqa: B027 - most have nothing to do
        """Release what outlives a call."""

    def _http_client(self) -> httpx2.AsyncClient:
        """Return a client that goes where it is told alone: no proxy, no redirect, no key from elsewhere."""

        async def authorise(request: httpx2.Request) -> None:
            request.headers["accept-encoding"] = "identity"
            request.headers.pop("authorization", None)
            if self._settings.api_key is not None:
                request.headers["authorization"] = f"Bearer {self._settings.api_key}"

        # In JSON a character takes up to 6 bytes, and in a stream every token its envelope, which is below 1 KiB.
        most = self._settings.max_context * (6 * _MAX_TOKEN_CHARACTERS + 1024) + 1024 * 1024

        async def bound(response: httpx2.Response) -> None:
            # What comes compressed would be measured before it is inflated, by a thousand times and more.
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise httpx2.DecodingError("the answer is compressed, which was not asked for")
            response.stream = _Bounded(response.stream, most)

        return httpx2.AsyncClient(
            verify=ssl.create_default_context(cafile=self._settings.ca_file),
            event_hooks={"request": [authorise], "response": [bound]},
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=self._settings.connect_timeout),
        )

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what a client library raises into an error of ours, without a word of the server's.

        Whatever it raises is the server's fault, for all that it works on is the server's bytes: deep nesting ends
        in a `RecursionError`, for one.
        """
        try:
            yield
        except Exception as fault:  # noqa: BLE001 - see above
            status = self._status(fault)
            if status in {400, 413, 422}:
                raise errors.InvalidArgument("the model server refuses the request", field="messages") from None
            if status == 429:
                raise errors.ResourceExhausted("the model server is busy", retry_after=1.0) from None
            _log.warning("model_server_failed", error=type(fault).__name__, status=status)
            raise errors.BackendUnavailable("the model server failed", retry_after=1.0) from None

    async def _watch_server(self) -> None:
        while not self._closing.is_set():
            try:
                async with asyncio.timeout(self._settings.probe_interval):
                    await self._closing.wait()
            except TimeoutError:
                await self.check()
                if not self._healthy:
                    _log.warning("model_server_unhealthy")


class _Bounded(httpx2.AsyncByteStream):
    """A response body that breaks off when it, or one event of it, is longer than any answer has."""

    def __init__(self, stream: object, most: int) -> None:
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise TypeError("an asynchronous client has asynchronous bodies")
        self._stream = stream
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left, event, tail = self._most, 0, b""
        async for part in self._stream:
            left -= len(part)
            seen = tail + part  # an event's end may lie across two parts
            first, *others = map(len, _EVENT_END.split(seen))
            event += first - len(tail)
            longest = max(event, *others, 0)
            if others:
                event = others[-1]
            if left < 0 or longest > _MAX_EVENT_BYTES:
                raise httpx2.ReadError("the answer is too long")
            tail = seen[-3:]
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Answer:
    """Checks and assembles the events of one remote answer."""

    def __init__(self, request: GenerationRequest, model: str) -> None:
        self._model = model
        self._max_tokens = request.max_new_tokens
        self._most_prompt_tokens = _most_prompt_tokens(request.messages)
        self._stops = StopScanner(request.stop)
        self._characters = 0
        self._bytes = 0
        self._half = ""
        self._named = False
        self._finish: Finish | None = None
        self._tokens: int | None = None
        self._prompt_tokens: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._stops.stopped

    def take(self, delta: Delta) -> str:
        """Return the text that `delta` releases; raises `BackendUnavailable` for one that makes no sense."""
        text = "" if delta.text is None else delta.text
        if delta.model not in (None, self._model) or not isinstance(text, str):
            raise _nonsense()
        self._named = self._named or delta.model is not None
        if text and not self._named:
            raise _nonsense()
        text = self._whole_characters(text)
        if text and self._finish is not None:
            raise _nonsense()
        if delta.finish is not None:
            self._finish = _FINISHES.get(delta.finish) if isinstance(delta.finish, str) else None
            if self._finish is None:
                raise _nonsense()
        if delta.completion_tokens is not None:
            if type(delta.completion_tokens) is not int or not 0 <= delta.completion_tokens <= self._max_tokens:
                raise _nonsense()
            self._tokens = delta.completion_tokens
        # Nothing was promised about the prompt, so a figure that cannot be is passed over: the bound stands.
        if type(delta.prompt_tokens) is int and 1 <= delta.prompt_tokens <= self._most_prompt_tokens:
            self._prompt_tokens = delta.prompt_tokens
        self._characters += len(text)
        self._bytes += len(text.encode())
        if self._characters > self._max_tokens * _MAX_TOKEN_CHARACTERS:
            raise _nonsense()
        return self._stops.feed(text)

    def _whole_characters(self, text: str) -> str:
        """Return `text` with the surrogate pairs joined that JSON spells a character with; half of one waits.

        Servers that decode token by token cut a pair in two events.
        """
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        try:
            return text.removesuffix(self._half).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise _nonsense() from None

    def last(self) -> Piece:
        """Return the last piece, with the usage of the whole answer; raises if the answer is incomplete."""
        if self._stops.stopped:  # cut here, so the server states no usage: as many tokens as bytes is a bound
            tokens = min(self._bytes, self._max_tokens)
            return Piece(text="", tokens=tokens, finish=Finish.STOP, prompt_tokens=self._prompt_tokens)
        if not self._named or self._finish is None or self._tokens is None or self._half:
            raise _nonsense()
        if self._tokens * _MAX_TOKEN_CHARACTERS < self._characters:
            raise _nonsense()
        return Piece(
            text=self._stops.finish(), tokens=self._tokens, finish=self._finish, prompt_tokens=self._prompt_tokens
        )


def _nonsense() -> errors.BackendUnavailable:
    return errors.BackendUnavailable("the model server's answer makes no sense", retry_after=1.0)


def _check_messages(messages: Sequence[Message]) -> None:
    if any(message.role not in ROLES for message in messages):
        raise errors.InvalidArgument("the role is not one of system, user, assistant", field="messages.role")
    if not messages or sum(len(message.content) for message in messages) > MAX_PROMPT_CHARACTERS:
        raise errors.InvalidArgument("the conversation is empty or too long", field="messages")


def _most_prompt_tokens(messages: Sequence[Message]) -> int:
    return sum(len(message.content.encode()) + _MESSAGE_TOKENS for message in messages) + _MESSAGE_TOKENS


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
