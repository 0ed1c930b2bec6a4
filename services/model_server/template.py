"""From a conversation to a model's prompt tokens, by the model's own chat template.

Control tokens come from the template alone: no message, alone or joined with what stands beside it, can add one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from services.model_server import sandbox
from services.model_server.vocabulary import Vocabulary
from shared import errors

MAX_TEMPLATE_CHARACTERS = 1 << 16
MAX_PROMPT_CHARACTERS = 1 << 22
ROLES = frozenset({"system", "user", "assistant"})
# Each character of a message may be read or written this often, and a template do so much besides (`sandbox`).
_WORK_PER_CHARACTER = 64
_WORK = 1 << 23
_FAULTS = (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError, AttributeError)
_PRIVATE_USE = range(0xF0000, 0x10FFFE, 0x100)  # planes 15 and 16, in pages of 256 stand-ins


class UnsupportedTemplate(errors.Error):
    """The model's chat template is missing, oversize, broken, or does not bear the content of messages."""

    code = errors.Code.FAILED_PRECONDITION
    reason = "UNSUPPORTED_TEMPLATE"


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation. `role` is one of `ROLES`."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A Jinja chat template as the model's maker wrote it, with the tokens it may name."""

    text: str
    bos_token: str | None
    eos_token: str | None

    @property
    def digest(self) -> str:
        """The template's `sha256:` digest, over its UTF-8 text."""
        return f"sha256:{hashlib.sha256(self.text.encode()).hexdigest()}"


class PromptEncoder:
    """Renders conversations with one template and encodes them with one vocabulary.

    While the template runs (sandboxed, as transformers runs it), every character of a message that occurs in any
    control token is replaced by a private-use stand-in. A control token in the rendered text therefore holds no
    character of a message. The text between control tokens then gets its characters back and is encoded as mere
    text, in whole runs, so that tokens merge across the seams as they did when the model was trained. A template
    that looks *inside* messages (for `</think>`, say) finds none of those characters; trimming works as ever.
    """

    def __init__(self, template: ChatTemplate, vocabulary: Vocabulary) -> None:
        """Bind the two; raises `UnsupportedTemplate` unless the template carries a message's text to the prompt."""
        if not 0 < len(template.text) <= MAX_TEMPLATE_CHARACTERS:
            raise UnsupportedTemplate("the model has no chat template, or one that is too long")
        self._template = template
        try:
            self._compiled = sandbox.environment().from_string(template.text)
        except (*_FAULTS, SyntaxError, MemoryError):
            raise UnsupportedTemplate("the chat template cannot be read, or uses what is not supported") from None
        self._vocabulary = vocabulary
        longest_first = sorted(vocabulary.control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._alphabet = sorted(set("".join(longest_first)))
        if len(self._alphabet) > 0x100:
            raise UnsupportedTemplate("the model's control tokens use too many characters")
        probe = "bastide"
        try:
            rendered = self._render([Message(role="user", content=probe)])
        except errors.InvalidArgument:
            raise UnsupportedTemplate("the chat template fails on a plain conversation") from None
        if probe not in rendered:
            raise UnsupportedTemplate("the chat template drops the user's message")

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's tokens, up to and including the start of the assistant's answer.

        Raises `InvalidArgument` for a role outside `ROLES`, for a conversation that the template itself refuses
        and for one that renders to more than `MAX_PROMPT_CHARACTERS`. CPU-bound: callers MUST keep it off an
        event loop.
        """
        content = "".join(message.content for message in messages)
        if any(message.role not in ROLES for message in messages):
            raise errors.InvalidArgument("the role is not one of system, user, assistant", field="messages.role")
        if not messages or len(content) > MAX_PROMPT_CHARACTERS:
            raise errors.InvalidArgument("the conversation is empty or too long", field="messages")
        page = self._free_page(content)
        hide = {ord(character): page + i for i, character in enumerate(self._alphabet)}
        show = {stand_in: character for character, stand_in in hide.items()}
        rendered = self._render(
            [Message(role=message.role, content=message.content.translate(hide)) for message in messages]
        )
        ids: list[int] = []
        end = 0
        for match in self._control.finditer(rendered):
            ids += self._vocabulary.encode(rendered[end : match.start()].translate(show))
            ids.append(self._vocabulary.control[match[0]])
            end = match.end()
        return ids + self._vocabulary.encode(rendered[end:].translate(show))

    def _free_page(self, content: str) -> int:
        taken = {ord(character) & ~0xFF for character in set(content + self._template.text)}
        for page in _PRIVATE_USE:
            if page not in taken:
                return page
        raise errors.InvalidArgument("the conversation uses every private-use page", field="messages")

    def _render(self, messages: Sequence[Message]) -> str:
        variables = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            "bos_token": self._template.bos_token,
            "eos_token": self._template.eos_token,
        }
        work = _WORK + _WORK_PER_CHARACTER * sum(len(message.content) for message in messages)
        try:
            return sandbox.render(self._compiled, variables, budget=work, limit=MAX_PROMPT_CHARACTERS)
        except sandbox.TooCostly:
            raise errors.InvalidArgument(
                "the conversation is too much for the chat template", field="messages"
            ) from None
        except _FAULTS:
            raise errors.InvalidArgument("the chat template refuses this conversation", field="messages") from None
