"""Strict reading of JSON and YAML documents: one reading of every text, or an error.

Both formats leave room that a policy must not have: keys given twice, NaN, YAML aliases (which also expand without
bound), dates and other values that JSON lacks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import yaml

from shared import errors

MAX_DEPTH = 32


class BundleError(errors.InvalidArgument):
    """A policy bundle cannot be read. The message names the file, never quotes it."""

    def __init__(self, message: str, *, where: str = "") -> None:
        """Say what is wrong, and `where` in the bundle."""
        super().__init__(f"{where}: {message}" if where else message, field="bundle")


class _Loader(yaml.SafeLoader):
    """YAML without aliases, merge keys, repeated keys, and keys that are not text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("alias")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise yaml.YAMLError("keys")
        return super().construct_mapping(node, deep=deep)


def parse(content: bytes, *, where: str) -> Any:
    """Parse a `.json` or `.yaml` document by the name `where`. Raises BundleError."""
    return parse_json(content, where=where) if where.endswith(".json") else parse_yaml(content, where=where)


def parse_json(content: bytes, *, where: str) -> Any:
    """Parse JSON that gives no key twice and no number beyond IEEE 754. Raises BundleError."""
    try:
        value = json.loads(content, object_pairs_hook=_distinct, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise BundleError("not strict JSON", where=where) from None
    return _plain(value, where)


def parse_input(content: bytes) -> dict[str, Any]:
    """Parse a question's input, a JSON object. Raises InvalidArgument naming the field `input`."""
    try:
        document = parse_json(content, where="input")
    except BundleError as error:
        raise errors.InvalidArgument(error.message, field="input") from None
    if not isinstance(document, dict):
        raise errors.InvalidArgument("input: not an object", field="input")
    return document


def parse_yaml(content: bytes, *, where: str) -> Any:
    """Parse one YAML document that says nothing JSON could not say. Raises BundleError."""
    try:
        value = yaml.load(content, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BundleError("not strict YAML", where=where) from None
    return _plain(value, where)


def mount(tree: dict[str, Any], path: Sequence[str], document: Any, *, where: str) -> None:
    """Put `document` at `path` of `tree`, as OPA mounts data files. Raises BundleError where something is there."""
    if not isinstance(document, dict):
        raise BundleError("a data document is an object", where=where)
    for name in path:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise BundleError("another document is in the way", where=where)
    _merge(tree, document, where)


def _merge(tree: dict[str, Any], document: dict[str, Any], where: str) -> None:
    for key, value in document.items():
        if isinstance(tree.get(key), dict) and isinstance(value, dict):
            _merge(tree[key], value, where)
        elif key in tree:
            raise BundleError(f"`{key}` is given by another document too", where=where)
        else:
            tree[key] = value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is given twice")
    return value


def _refuse(_: str) -> None:
    raise ValueError("not a JSON number")


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise BundleError("nested too deep", where=where)
    match value:
        case dict():
            for item in value.values():
                _plain(item, where, depth + 1)
        case list():
            for item in value:
                _plain(item, where, depth + 1)
        case float() if not math.isfinite(value):
            raise BundleError("a number without bound", where=where)
        case None | bool() | int() | float() | str():
            pass
        case _:
            raise BundleError("a value that JSON lacks (quote dates and times)", where=where)
    return value
