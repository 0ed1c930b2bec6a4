"""A model's tokenizer: which tokens control it, text to tokens, and tokens to whole characters.

Only byte-level BPE (Radford et al. 2019, section 2.2) is accepted. Each of its tokens is a byte string, so text can be
encoded piece by piece and decoded token by token with nothing lost.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer

from shared import errors

MAX_TOKENIZER_BYTES = 64 << 20
_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Sequence"}


class UnsupportedTokenizer(errors.Error):
    """The tokenizer is not one that keeps the promises made here."""

    code = errors.Code.FAILED_PRECONDITION
    reason = "UNSUPPORTED_TOKENIZER"


class Vocabulary:
    """One tokenizer, held in memory.

    `control` maps the text of each control token to its id. Every added token is one, unless it is mere white
    space: many models declare `<think>` or `<tool_call>` as ordinary added tokens and still act on them. Every
    id is below `size`.
    """

    def __init__(self, tokenizer_json: bytes) -> None:
        """Read a `tokenizer.json`. Raises `UnsupportedTokenizer` for any but a plain byte-level BPE."""
        if len(tokenizer_json) > MAX_TOKENIZER_BYTES:
            raise UnsupportedTokenizer("the tokenizer is too large")
        with _contained(UnsupportedTokenizer("the tokenizer is malformed")):
            declared = json.loads(tokenizer_json)
            self._refuse_unsupported(declared)
            self._unspoken = {token["id"] for token in declared["added_tokens"] if token["special"]}
            for token in declared["added_tokens"]:
                token["special"] = token["special"] or bool(token["content"].strip())
            declared.update(truncation=None, padding=None, post_processor=None)
            self._tokenizer = Tokenizer.from_str(json.dumps(declared))
        self._tokenizer.encode_special_tokens = True
        self.control = {
            token.content: index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self._control_ids = frozenset(self.control.values())
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text`, in which control tokens are mere text: none of theirs is among them.

        Raises `InvalidArgument` for a text that the tokenizer fails on.
        """
        with _contained(errors.InvalidArgument("the tokenizer fails on this text", field="messages")):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(ids):
            raise errors.InvalidArgument("the text cannot be encoded without control tokens", field="messages")
        return ids

    def token(self, index: int | None) -> str | None:
        """Return the token with id `index`, as the vocabulary spells it."""
        return None if index is None else self._tokenizer.id_to_token(index)

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes that token `index` stands for; none for a token declared special."""
        if index in self._unspoken:
            return b""
        token = self._tokenizer.id_to_token(index)
        if token is None:  # models pad their embedding beyond the vocabulary
            return b""
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # an added token is plain text, not spelt in the byte alphabet
            return token.encode()

    @staticmethod
    def _refuse_unsupported(declared: dict[str, Any]) -> None:
        model, decoder, pre = declared["model"], declared["decoder"], declared["pre_tokenizer"]
        stages = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
        if (
            model["type"] != "BPE"
            or decoder["type"] != "ByteLevel"
            or not {stage["type"] for stage in stages} <= _PRE_TOKENIZERS
            or not any(stage["type"] == "ByteLevel" for stage in stages)
            or (declared["normalizer"] or {"type": "NFC"})["type"] != "NFC"
        ):
            raise UnsupportedTokenizer("only byte-level BPE tokenizers are supported")
        if any(stage.get("add_prefix_space") for stage in stages) or model.get("dropout"):
            raise UnsupportedTokenizer("a tokenizer that alters or varies the text is not supported")
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise UnsupportedTokenizer("a tokenizer that marks where words begin or end is not supported")
        if model.get("unk_token") is not None and model["unk_token"] not in model["vocab"]:
            raise UnsupportedTokenizer("the tokenizer's unknown token is not in its vocabulary")
        for token in declared["added_tokens"]:
            if token["lstrip"] or token["rstrip"] or token["single_word"] or not token["content"]:
                raise UnsupportedTokenizer("added tokens that reach into the text around them are not supported")
            if token["content"].strip() and any(map(str.isspace, token["content"])):
                raise UnsupportedTokenizer("control tokens that hold white space are not supported")


class Detokenizer:
    """Turns tokens into text as they come, in whole characters.

    Bytes that can never form a character become U+FFFD, one for each maximal invalid part (Unicode 16, section
    3.9), just as decoding all the tokens at once would give.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Start an empty text over `vocabulary`."""
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, tokens: Iterable[int]) -> str:
        """Return the characters that `tokens` complete."""
        return self._decoder.decode(b"".join(map(self._vocabulary.token_bytes, tokens)))

    def finish(self) -> str:
        """Return what is left of a character that the last token cut."""
        return self._decoder.decode(b"", final=True)


@contextlib.contextmanager
def _contained(refusal: errors.Error) -> Iterator[None]:
    """Raise `refusal` for whatever the tokenizers library raises: bare `Exception`, or a panic of its Rust code."""
    try:
        yield
    except errors.Error:
        raise
    except BaseException as fault:
        # pyo3's PanicException, which no module exports, is no Exception.
        if not isinstance(fault, Exception) and type(fault).__name__ != "PanicException":
            raise
        raise refusal from None


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 stands for itself, other bytes for U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
