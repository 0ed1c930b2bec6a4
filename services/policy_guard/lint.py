"""What a policy may call, checked on the parsed modules before any of it runs.

The embedded interpreter raises for a missing builtin when the line runs, not when it loads; OPA has builtins that
reach the network or answer differently each time. The same list binds both engines, so that a bundle means the same
on each, its decisions can be replayed later, and whatever is missing fails the load.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

TEST_SUFFIX = "_test.rego"
"""How the file of a bundle's unit tests ends."""

BUILTINS = frozenset(
    {
        "abs",
        "ceil",
        "floor",
        "round",
        "numbers.range",
        "max",
        "min",
        "sum",
        "product",
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
        "object.subset",
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
        "to_number",
        "format_int",
        "concat",
        "contains",
        "endswith",
        "indexof",
        "lower",
        "replace",
        "split",
        "sprintf",
        "startswith",
        "substring",
        "trim",
        "trim_left",
        "trim_prefix",
        "trim_right",
        "trim_space",
        "trim_suffix",
        "upper",
        "strings.any_prefix_match",
        "strings.any_suffix_match",
        "strings.count",
        "strings.replace_n",
        "strings.reverse",
        "regex.match",
        "glob.match",
        "json.match_schema",
        "time.add_date",
        "time.clock",
        "time.date",
        "time.parse_rfc3339_ns",
        "time.weekday",
        "net.cidr_contains",
        "semver.compare",
        "semver.is_valid",
    }
)
"""Builtins that both engines have, that agree on both, and that give the same answer to the same question for ever."""


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


def check(trees: list[dict[str, Any]]) -> list[Problem]:
    """Return what is wrong with parsed modules, as regorus' `get_ast_as_json` gives them. Empty means nothing."""
    packages = {tree["source"]["file"]: _dotted(tree["ast"]["package"]["refr"]) for tree in trees}
    functions = {
        f"data.{packages[tree['source']['file']]}.{name}" for tree in trees for name in _functions(tree["ast"])
    }
    problems = []
    homes: dict[str, str] = {}
    for tree in trees:
        path, package = tree["source"]["file"], packages[tree["source"]["file"]]
        if package.removesuffix("_test") != ".".join(PurePosixPath(path).parent.parts):
            problems.append(_problem("lint", path, 1, f"package {package} does not mirror its directory"))
        if not path.endswith(TEST_SUFFIX) and homes.setdefault(package, path) != path:
            # regorus takes some rules for undefined when such a package is imported.
            problems.append(_problem("lint", path, 1, f"package {package} is spread over several files"))
        aliases = dict(_imports(tree))
        for line, name in _calls(tree["ast"]["rules"]):
            head, _, rest = name.partition(".")
            target = f"{aliases[head]}.{rest}".removesuffix(".") if head in aliases else name
            if not {target, f"data.{package}.{target}"} & functions and (head in aliases or target not in BUILTINS):
                problems.append(_problem("builtins", path, line, f"{name} is not a function for policies"))
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


def _calls(rules: Any) -> Iterator[tuple[int, str]]:
    for node in _nodes(rules):
        if "Call" in node:
            yield node["Call"]["span"]["line"], _dotted(node["Call"]["fcn"])


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
