"""What a policy may say, checked on the parsed modules before any of it runs.

The embedded interpreter raises for a missing builtin when the line runs, not when it loads; OPA has builtins that
reach the network or answer differently each time; and of what both have, some answers differ. The same rules bind both
engines, so that a bundle means the same on each, its decisions can be replayed later, and whatever is missing or
differs fails the load. `tests/vectors/policy/engines.yaml` holds what was compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

TEST_SUFFIX = "_test.rego"
"""How the file of a bundle's unit tests ends."""

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
    (?: \^ | \$
      | \| | \( (?:\?:)? | \)
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


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """One thing that keeps a bundle from being served."""

    check: str
    """Which check: `parse`, `lint`, `builtins`, `schema`, `tests`, `coverage`, `samples` or `lifecycle`."""
    location: str
    """File and line, or the part of the bundle; empty where there is none."""
    message: str

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.location}: {self.message} ({self.check})"


def check(trees: list[dict[str, Any]], data: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with a bundle's data and its modules, parsed as regorus' `get_ast_as_json` gives them."""
    packages = {tree["source"]["file"]: _dotted(tree["ast"]["package"]["refr"]) for tree in trees}
    functions = {
        f"data.{packages[tree['source']['file']]}.{name}" for tree in trees for name in _functions(tree["ast"])
    }
    collections = {
        f"data.{packages[tree['source']['file']]}.{name}" for tree in trees for name in _collections(tree["ast"])
    }
    schemas = data.get("schemas", {})
    problems = [
        Problem(check="schema", location=f"schemas/{name}", message=message)
        for name, schema in schemas.items()
        for message in _of_schema(schema)
    ]
    homes: dict[str, str] = {}
    for tree in trees:
        path, package = tree["source"]["file"], packages[tree["source"]["file"]]
        if package.removesuffix("_test") != ".".join(PurePosixPath(path).parent.parts):
            problems.append(_problem("lint", path, 1, f"package {package} does not mirror its directory"))
        if not path.endswith(TEST_SUFFIX) and homes.setdefault(package, path) != path:
            # regorus takes some rules for undefined when such a package is imported.
            problems.append(_problem("lint", path, 1, f"package {package} is spread over several files"))
        aliases = dict(_imports(tree))
        for line, name, argument in _calls(tree["ast"]["rules"]):
            head, _, rest = name.partition(".")
            target = f"{aliases[head]}.{rest}".removesuffix(".") if head in aliases else name
            if not {target, f"data.{package}.{target}"} & functions and (head in aliases or target not in BUILTINS):
                problems.append(_problem("builtins", path, line, f"{name} is not a function for policies"))
            elif (
                target == "count"
                and not path.endswith(TEST_SUFFIX)
                and not _is_collection(argument, collections, package, aliases, data)
            ):
                # Of text regorus counts UTF-16 code units, OPA characters.
                problems.append(
                    _problem("lint", path, line, "count is for sets, lists and objects that are known as such")
                )
        problems += [_problem("lint", path, line, text) for line, text in _ambiguities(tree, data)]
        for line, root in _replacements(tree["ast"]["rules"]):
            # A replaced function could smuggle in any other.
            if root not in {"input", "data"} or not path.endswith(TEST_SUFFIX):
                problems.append(_problem("lint", path, line, "`with` is for `input` and `data`, in tests"))
    return sorted(problems)


def _problem(check: str, path: str, line: int, message: str) -> Problem:
    return Problem(check=check, location=f"{path}:{line}", message=message)


def tests(trees: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Return path, line and full name of every `test_*` rule of the test modules, each name once."""
    found: dict[str, tuple[str, int]] = {}
    for tree in trees:
        path, package = tree["source"]["file"], _dotted(tree["ast"]["package"]["refr"])
        for rule in tree["ast"]["rules"] if path.endswith(TEST_SUFFIX) else ():
            head = rule.get("Spec", {}).get("head", {}).get("Compr")
            if head and _dotted(head["refr"]).startswith("test_"):
                found.setdefault(f"data.{package}.{_dotted(head['refr'])}", (path, head["span"]["line"]))
    return [(path, line, name) for name, (path, line) in found.items()]


def _functions(module: dict[str, Any]) -> Iterator[str]:
    for rule in module["rules"]:
        for kind, body in rule.items():
            if kind == "Default" and body["args"]:
                yield _dotted(body["refr"])
            elif kind == "Spec" and "Func" in body["head"]:
                yield _dotted(body["head"]["Func"]["refr"])


def _imports(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    source = tree["source"]["contents"].encode()
    for entry in tree["ast"]["imports"]:
        target = _dotted(entry["refr"])
        alias = entry.get("as")
        yield source[alias["start"] : alias["end"]].decode() if alias else target.rpartition(".")[2], target


def _calls(rules: Any) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for node in _nodes(rules):
        if "Call" in node:
            arguments = node["Call"]["params"]
            yield node["Call"]["span"]["line"], _dotted(node["Call"]["fcn"]), arguments[0] if arguments else {}


def _collections(module: dict[str, Any]) -> Iterator[str]:
    """Yield the rules that are sets, lists or objects wherever they are defined."""
    forms: dict[str, set[bool]] = {}
    for rule in module["rules"]:
        for kind, body in rule.items():
            shape, head = ("Default", body) if kind == "Default" else next(iter(body["head"].items()))
            value = head["value"] if kind == "Default" else (head.get("assign") or {}).get("value", {})
            forms.setdefault(_dotted(head["refr"]), set()).add(shape == "Set" or bool(_COLLECTIONS & value.keys()))
    yield from (name for name, known in forms.items() if known == {True})


def _is_collection(
    node: dict[str, Any], rules: set[str], package: str, aliases: Mapping[str, str], data: Mapping[str, Any]
) -> bool:
    """Tell whether an expression is a set, list or object by its form."""
    if _COLLECTIONS & node.keys():
        return True
    name = _dotted(node)
    head, _, rest = name.partition(".")
    if head in aliases:
        name = f"{aliases[head]}.{rest}".removesuffix(".")
    if {name, f"data.{package}.{name}"} & rules:
        return True
    root, _, path = name.partition(".")
    if root == "data":
        return isinstance(_at(data, path.split(".")), dict | list)
    return root == "input" and bool(types := _input_types(path, data)) and types <= {"array", "object"}


def _ambiguities(tree: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield what the engines, or a schema's two readers, could take differently: line and message."""
    source = tree["source"]["contents"].encode()
    for node in _nodes(tree["ast"]["rules"]):
        for kind, inner in node.items():
            if kind == "Number":
                literal = source[inner["span"]["start"] : inner["span"]["end"]].decode()
                if not literal.lstrip("-").isdecimal() and sum(map(str.isdecimal, literal)) > _MAX_DIGITS:
                    yield inner["span"]["line"], f"a number has at most {_MAX_DIGITS} digits"
            elif kind == "ArithExpr" and not tree["source"]["file"].endswith(TEST_SUFFIX):
                if inner["op"] not in ("Add", "Sub"):
                    yield inner["span"]["line"], "policies neither multiply nor divide: whoever gathers the facts does"
                elif not _is_whole(node, data):
                    yield (
                        inner["span"]["line"],
                        "`+` and `-` are for whole numbers: literals, `count`, and fields that input schemas and data "
                        "have as such; write the difference of sets as a comprehension",
                    )
            elif kind == "Call":
                yield from ((inner["span"]["line"], text) for text in _of_call(inner))


def _of_call(call: Mapping[str, Any]) -> Iterator[str]:
    name, arguments = _dotted(call["fcn"]), call["params"]
    if name == "regex.match" and arguments:
        pattern = next((arguments[0][kind]["value"] for kind in ("String", "RawString") if kind in arguments[0]), None)
        if pattern is None:
            yield "the pattern of regex.match is written where it is used"
        elif not _is_plain(pattern):
            yield "the pattern is none that both engines read alike"
    elif name == "json.match_schema":
        names = [_dotted(argument) for argument in arguments[:2]]
        if len(names) < 2 or names[0] != "input" or not names[1].startswith("data.schemas."):
            yield "json.match_schema is for `input` and one of `data.schemas`"


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


def _of_schema(schema: Any) -> Iterator[str]:
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
        yield from _of_schema(inner)
    for word in ("items", "additionalProperties"):
        yield from _of_schema(schema.get(word, True))


def _is_whole(node: dict[str, Any], data: Mapping[str, Any]) -> bool:
    """Tell whether an expression is a whole number by its form."""
    if "Number" in node:
        return isinstance(node["Number"]["value"], int)
    if "Call" in node:
        return _dotted(node["Call"]["fcn"]) == "count"
    if "ArithExpr" in node:
        inner = node["ArithExpr"]
        return inner["op"] in ("Add", "Sub") and _is_whole(inner["lhs"], data) and _is_whole(inner["rhs"], data)
    root, _, path = _dotted(node).partition(".")
    if root == "data":
        value = _at(data, path.split("."))
        return isinstance(value, int) and not isinstance(value, bool)
    if root == "input":
        return {"integer"} <= _input_types(path, data) <= {"integer", "null"}
    return False


def _at(document: Any, path: list[str]) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _input_types(path: str, data: Mapping[str, Any]) -> set[str]:
    """Return the types that the schemas of the input allow at `path` together."""
    return set().union(*(_types_at(schema, path.split(".")) for schema in data.get("schemas", {}).values()))


def _types_at(schema: Any, path: list[str]) -> set[str]:
    """Return the types that a schema allows at `path`; none where it does not know the path."""
    found = _at(schema, [part for name in path for part in ("properties", name)])
    types = found.get("type", "any") if isinstance(found, dict) else ()
    return {types} if isinstance(types, str) else set(types)


def _replacements(rules: Any) -> Iterator[tuple[int, str]]:
    for node in _nodes(rules):
        for replaced in node.get("with_mods", ()):
            yield replaced["span"]["line"], _dotted(replaced["refr"]).partition(".")[0]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(child)


def _dotted(reference: dict[str, Any]) -> str:
    if "Var" in reference:
        return str(reference["Var"]["value"])
    if "RefDot" in reference:
        return f"{_dotted(reference['RefDot']['refr'])}.{reference['RefDot']['field'][1]}"
    if "RefBrack" in reference and "String" in reference["RefBrack"]["index"]:
        return f"{_dotted(reference['RefBrack']['refr'])}.{reference['RefBrack']['index']['String']['value']}"
    return "a computed reference"  # no name to look up, so it is on no list
