"""Deny-listed topics: terms that policy data owns and hands in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from shared.inspection.normalisation import normalise
from shared.inspection.rules import AFTER_WORD, BEFORE_WORD, Rule


def topic_rules(terms: Mapping[str, Sequence[str]]) -> tuple[Rule, ...]:
    """Return a rule for each topic that has terms; its label is the topic.

    Case and white space do not matter. A term of Latin letters stands between other characters; in other scripts,
    which inflect or have no spaces, it is found inside words too. Raises ValueError on a blank term.
    """
    return tuple(
        Rule(
            name=f"topic-{topic}",
            kind="TOPIC",
            pattern=rf"{BEFORE_WORD}(?:{'|'.join(_pattern(term) for term in sorted(words, key=len, reverse=True))}){AFTER_WORD}",
            needs=tuple(normalise(word.split()[0]).lower() for word in words),
            label=topic,
            ignore_case=True,
        )
        for topic, words in terms.items()
        if words
    )


def _pattern(term: str) -> str:
    words = normalise(term).split()
    if not words:
        raise ValueError("a topic has a blank term")
    return r"\s{1,8}".join("".join(map(_either_case, word)) for word in words)


def _either_case(character: str) -> str:
    cases = {character, character.lower(), character.upper()}
    single = sorted(case for case in cases if len(case) == 1)
    return re.escape(character) if character.isascii() else f"[{''.join(single)}]"
