"""Rego's syntax tree as regorus gives it (`get_ast_as_json`), walked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a tree, outermost first."""
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from nodes(child)


def dotted(reference: dict[str, Any]) -> str:
    """Return the name that a reference spells, `data.bastide.roles`; one that is on no list where it is computed."""
    if "Var" in reference:
        return str(reference["Var"]["value"])
    if "RefDot" in reference:
        return f"{dotted(reference['RefDot']['refr'])}.{reference['RefDot']['field'][1]}"
    if "RefBrack" in reference and "String" in reference["RefBrack"]["index"]:
        return f"{dotted(reference['RefBrack']['refr'])}.{reference['RefBrack']['index']['String']['value']}"
    return "a computed reference"
