"""What a policy may say, checked on the parsed modules before any of it runs.

The embedded interpreter raises for a missing builtin when the line runs, not when it loads; OPA has builtins that
reach the network or answer differently each time. The same list binds both engines, so that a bundle's decisions can be
replayed later, and whatever is missing, or is answered differently (`agreement`), fails the load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from services.policy_guard import agreement
from services.policy_guard.agreement import BUILTINS, Known
from services.policy_guard.rego_tree import dotted, nodes

TEST_SUFFIX = "_test.rego"
"""How the file of a bundle's unit tests ends."""


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
    packages = {tree["source"]["file"]: dotted(tree["ast"]["package"]["refr"]) for tree in trees}
    functions, collections = (
        frozenset(f"data.{packages[tree['source']['file']]}.{name}" for tree in trees for name in named(tree["ast"]))
        for named in (_functions, agreement.collections)
    )
    schemas = data.get("schemas")
    problems = [
        Problem(check="schema", location=f"schemas/{name}", message=message)
        for name, schema in (schemas.items() if isinstance(schemas, dict) else ())
        for message in agreement.of_schema(schema)
    ]
    homes: dict[str, str] = {}
    for tree in trees:
        path, package = tree["source"]["file"], packages[tree["source"]["file"]]
        if package.removesuffix("_test") != ".".join(PurePosixPath(path).parent.parts):
            problems.append(_problem("lint", path, 1, f"package {package} does not mirror its directory"))
        if not path.endswith(TEST_SUFFIX) and homes.setdefault(package, path) != path:
            # regorus takes some rules for undefined when such a package is imported.
            problems.append(_problem("lint", path, 1, f"package {package} is spread over several files"))
        known = Known(package=package, aliases=dict(_imports(tree)), collections=collections, data=data)
        for line, name in _calls(tree["ast"]["rules"]):
            target, renamed = known.full(name), name.partition(".")[0] in known.aliases
            if not {target, f"data.{package}.{target}"} & functions and (renamed or target not in BUILTINS):
                problems.append(_problem("builtins", path, line, f"{name} is not a function for policies"))
        ambiguities = agreement.ambiguities(tree, known, test=path.endswith(TEST_SUFFIX))
        problems += [_problem("lint", path, line, message) for line, message in ambiguities]
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
        path, package = tree["source"]["file"], dotted(tree["ast"]["package"]["refr"])
        for rule in tree["ast"]["rules"] if path.endswith(TEST_SUFFIX) else ():
            head = rule.get("Spec", {}).get("head", {}).get("Compr")
            if head and dotted(head["refr"]).startswith("test_"):
                found.setdefault(f"data.{package}.{dotted(head['refr'])}", (path, head["span"]["line"]))
    return [(path, line, name) for name, (path, line) in found.items()]


def _functions(module: dict[str, Any]) -> Iterator[str]:
    for rule in module["rules"]:
        for kind, body in rule.items():
            if kind == "Default" and body["args"]:
                yield dotted(body["refr"])
            elif kind == "Spec" and "Func" in body["head"]:
                yield dotted(body["head"]["Func"]["refr"])


def _imports(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    source = tree["source"]["contents"].encode()
    for entry in tree["ast"]["imports"]:
        target = dotted(entry["refr"])
        alias = entry.get("as")
        yield source[alias["start"] : alias["end"]].decode() if alias else target.rpartition(".")[2], target


def _calls(rules: Any) -> Iterator[tuple[int, str]]:
    for node in nodes(rules):
        if "Call" in node:
            yield node["Call"]["span"]["line"], dotted(node["Call"]["fcn"])


def _replacements(rules: Any) -> Iterator[tuple[int, str]]:
    for node in nodes(rules):
        for replaced in node.get("with_mods", ()):
            yield replaced["span"]["line"], dotted(replaced["refr"]).partition(".")[0]
