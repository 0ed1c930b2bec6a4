"""What the two policy engines answer alike: a bundle that says anything else is not loaded.

Of the builtins that both have, some answers differ, and so do fractions, text and patterns in places. The same rules
bind both engines, so that a bundle means the same on each. `tests/vectors/policy/engines.yaml` holds what was compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.policy_guard.rego_tree import dotted, nodes

BUILTINS = frozenset(
    {
        "numbers.range",
        "max",
        "min",
        "count",
        "sort",
        "array.concat",
        "array.reverse",
        "array.slice",
        "intersection",
        "union",
        "object.filter",
        "object.get",
        "object.keys",
        "object.remove",
        "object.union",
        "object.union_n",
        "is_array",
        "is_boolean",
        "is_null",
        "is_number",
        "is_object",
        "is_set",
        "is_string",
        "type_name",
        "format_int",
        "concat",
        "contains",
        "endswith",
        "replace",
        "split",
        "startswith",
        "substring",
        "trim",
        "trim_left",
        "trim_prefix",
        "trim_right",
        "trim_space",
        "trim_suffix",
        "strings.any_prefix_match",
        "strings.any_suffix_match",
        "strings.reverse",
        "regex.match",
        "json.match_schema",
    }
)
"""Builtins that both engines have, that agree on both, and that give the same answer to the same question for ever.

Not among them though both have them: `sprintf` (they print fractions and sets differently), `lower` and `upper` (İ, ß),
`to_number`, `floor` and `ceil`, `indexof`, `strings.count`, `strings.replace_n`, `object.subset`, `glob.match`,
`net.cidr_contains`, `semver.*`, and `time.*`, which need a time zone database of each.
"""

_MAX_DIGITS = 15
"""Decimals of so many digits are told apart by IEEE 754 doubles too, with which the embedded engine compares."""

_MAX_REPETITIONS = 1000
"""What Go's regular expressions take, of all that a pattern repeats together."""

_PATTERN = re.compile(
    r"""
    (?: \^ | \$ | \| | \( (?:\?:)?
      | (?: [^\\.^$*+?()\[\]{}|] | \. | \\[.^$*+?()\[\]{}|\\/-]
          | \[ \^? (?: [0-9]-[0-9] | [a-z]-[a-z] | [A-Z]-[A-Z] | [^\\\[\]^&~-] | \\[.^$*+?()\[\]{}|\\-] )+ -? \]
          | \) )
        (?: (?: [*+?] | \{[0-9]{1,4}(?:,[0-9]{0,4})?\} ) \?? )?
    )*
    """,
    re.VERBOSE,
)

_COLLECTIONS = frozenset({"Array", "Set", "Object", "ArrayCompr", "SetCompr", "ObjectCompr"})

_SCHEMA_WORDS = frozenset(
    {
        "$schema",
        "title",
        "description",
        "type",
        "enum",
        "properties",
        "required",
        "additionalProperties",
        "minProperties",
        "maxProperties",
        "items",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "pattern",
    }
)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a module's names before any call."""

    package: str
    aliases: Mapping[str, str]
    """What the module's imports call what."""
    collections: frozenset[str]
    """Full names of the bundle's rules that are sets, lists or objects wherever they are defined."""
    data: Mapping[str, Any]

    def full(self, name: str) -> str:
        """Return `name` without the module's aliases."""
        head, _, rest = name.partition(".")
        return f"{self.aliases[head]}.{rest}".removesuffix(".") if head in self.aliases else name


def collections(module: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rules that are sets, lists or objects wherever they are defined."""
    forms: dict[str, set[bool]] = {}
    for rule in module["rules"]:
        for kind, body in rule.items():
            shape, head = ("Default", body) if kind == "Default" else next(iter(body["head"].items()))
            value = head["value"] if kind == "Default" else (head.get("assign") or {}).get("value", {})
            forms.setdefault(dotted(head["refr"]), set()).add(shape == "Set" or bool(_COLLECTIONS & value.keys()))
    yield from (name for name, known in forms.items() if known == {True})


def ambiguities(tree: Mapping[str, Any], known: Known, *, test: bool) -> Iterator[tuple[int, str]]:
    """Yield what the engines could take differently in a module: line and message.

    In a module of tests, which decides nothing, numbers may be computed and anything counted.
    """
    source = tree["source"]["contents"].encode()
    for node in nodes(tree["ast"]["rules"]):
        for kind, inner in node.items():
            found: Iterator[str] = iter(())
            if kind == "Number":
                found = _of_number(source[inner["span"]["start"] : inner["span"]["end"]].decode())
            elif kind == "ArithExpr" and not test:
                found = _of_arithmetic(node, known)
            elif kind == "Call":
                found = _of_call(inner, known, test=test)
            yield from ((inner["span"]["line"], message) for message in found)


def _of_number(literal: str) -> Iterator[str]:
    if not literal.lstrip("-").isdecimal() and sum(map(str.isdecimal, literal)) > _MAX_DIGITS:
        yield f"a number has at most {_MAX_DIGITS} digits"


def _of_arithmetic(node: dict[str, Any], known: Known) -> Iterator[str]:
    if node["ArithExpr"]["op"] not in ("Add", "Sub"):
        yield "policies neither multiply nor divide: whoever gathers the facts does"
    elif not _is_whole(node, known):
        yield (
            "`+` and `-` are for whole numbers: literals, `count`, and fields that schemas and data have as such; "
            "write the difference of sets as a comprehension"
        )


def _of_call(call: Mapping[str, Any], known: Known, *, test: bool) -> Iterator[str]:
    name, arguments = known.full(dotted(call["fcn"])), call["params"]
    if name == "count" and not test and not (arguments and _is_collection(arguments[0], known)):
        # Of text regorus counts UTF-16 code units, OPA characters.
        yield "count is for sets, lists and objects that are known as such: rules, literals, fields"
    elif name == "regex.match" and arguments:
        pattern = next((arguments[0][kind]["value"] for kind in ("String", "RawString") if kind in arguments[0]), None)
        if pattern is None:
            yield "the pattern of regex.match is written where it is used"
        elif not _is_plain(pattern):
            yield "the pattern is none that both engines read alike"
    elif name == "json.match_schema":
        names = [dotted(argument) for argument in arguments]
        if len(names) != 2 or names[0] != "input" or not names[1].startswith("data.schemas."):
            yield "json.match_schema is for `input` and one of `data.schemas`"


def _is_collection(node: dict[str, Any], known: Known) -> bool:
    """Tell whether an expression is a set, list or object by its form."""
    if _COLLECTIONS & node.keys():
        return True
    name = known.full(dotted(node))
    if {name, f"data.{known.package}.{name}"} & known.collections:
        return True
    root, _, path = name.partition(".")
    if root == "data":
        return isinstance(_at(known.data, path.split(".")), dict | list)
    return root == "input" and bool(types := _input_types(path, known.data)) and types <= {"array", "object"}


def _is_whole(node: dict[str, Any], known: Known) -> bool:
    """Tell whether an expression is a whole number by its form."""
    if "Number" in node:
        return isinstance(node["Number"]["value"], int)
    if "Call" in node:
        return dotted(node["Call"]["fcn"]) == "count"
    if "ArithExpr" in node:
        inner = node["ArithExpr"]
        return inner["op"] in ("Add", "Sub") and _is_whole(inner["lhs"], known) and _is_whole(inner["rhs"], known)
    root, _, path = known.full(dotted(node)).partition(".")
    if root == "data":
        value = _at(known.data, path.split("."))
        return isinstance(value, int) and not isinstance(value, bool)
    return root == "input" and {"integer"} <= _input_types(path, known.data) <= {"integer", "null"}


def _is_plain(pattern: str) -> bool:
    """Tell whether Go's and Rust's regular expressions take a pattern, and take it alike.

    Of both the common ground: classes of characters and ranges, groups, alternatives, repetitions. No named classes
    (what is a digit?), no flags, no repetition of repetitions.
    """
    if not _PATTERN.fullmatch(pattern):
        return False
    repeated = 1
    for bounds in re.findall(r"\{([0-9,]+)\}", re.sub(r"\\.", "", pattern)):
        least, _, most = bounds.partition(",")
        if most and int(least) > int(most):
            return False
        repeated *= max(1, int(most or least))
    try:
        re.compile(pattern)
    except re.error:
        return False
    return repeated <= _MAX_REPETITIONS


def of_schema(schema: Any) -> Iterator[str]:
    """Yield what the engines need not agree on in a JSON Schema."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield "a schema is an object"
        return
    yield from (f"the engines need not agree on `{word}`" for word in sorted(schema.keys() - _SCHEMA_WORDS))
    if not _is_plain(str(schema.get("pattern", ""))):
        yield "the pattern is none that both engines read alike"
    properties = schema.get("properties", {})
    for inner in properties.values() if isinstance(properties, dict) else ():
        yield from of_schema(inner)
    for word in ("items", "additionalProperties"):
        yield from of_schema(schema.get(word, True))


def _at(document: Any, path: list[str]) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _input_types(path: str, data: Mapping[str, Any]) -> set[str]:
    """Return the types that the schemas of the input allow at `path` together."""
    schemas = data.get("schemas")
    found = schemas.values() if isinstance(schemas, dict) else ()
    return set().union(*(_types_at(schema, path.split(".")) for schema in found))


def _types_at(schema: Any, path: list[str]) -> set[str]:
    """Return the types that a schema allows at `path`; none where it does not know the path."""
    found = _at(schema, [part for name in path for part in ("properties", name)])
    types = found.get("type", "any") if isinstance(found, dict) else ()
    return {types} if isinstance(types, str) else set(types)
