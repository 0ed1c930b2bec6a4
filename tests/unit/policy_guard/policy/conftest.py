import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.policy_guard.bundle import Bundle, read_directory
from services.policy_guard.engine import PolicyEngine
from services.policy_guard.engines import choose_engine
from tests import tools

POLICIES = Path(__file__).parents[4] / "services" / "policy_guard" / "policies"
VECTORS = Path(__file__).parents[3] / "vectors" / "policy"
DEFAULT = read_directory(POLICIES)


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def opa_binary() -> Path:
    return Path(tools.need("opa"))


def make_engine(kind: str) -> PolicyEngine:
    if kind == "opa":
        return choose_engine(engine="opa", opa_binary=opa_binary())
    return choose_engine(engine="embedded")


def vectors(question: str) -> list[dict[str, Any]]:
    document = yaml.safe_load((VECTORS / f"{question}.yaml").read_text())
    return [{**case, "input": changed(document["base"], case)} for case in document["cases"]]


def changed(base: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    value = merged(base, case.get("change", {}))
    for path in case.get("remove", ()):
        *parents, name = path.split(".")
        part = value
        for step in parents:
            part = part[step]
        del part[name]
    return value


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    value = copy.deepcopy(base)
    for key, item in change.items():
        nested = isinstance(item, dict) and isinstance(value.get(key), dict)
        value[key] = merged(value[key], item) if nested else item
    return value


def with_data(change: dict[str, Any]) -> Bundle:
    """The default bundle with `change` merged into its data."""
    return Bundle(modules=DEFAULT.modules, data=merged(dict(DEFAULT.data), change))


def with_module(path: str, *replaced: tuple[str, str]) -> Bundle:
    """The default bundle with text of one module replaced."""
    source = DEFAULT.modules[path]
    for old, new in replaced:
        assert old in source
        source = source.replace(old, new)
    return Bundle(modules={**DEFAULT.modules, path: source}, data=DEFAULT.data)


@pytest.fixture(params=["embedded", "opa"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[PolicyEngine]:
    chosen = make_engine(request.param)
    yield chosen
    await chosen.close()


@pytest.fixture(scope="module", params=["embedded", "opa"])
def default_kind(request: pytest.FixtureRequest) -> str:
    if request.param == "opa":
        opa_binary()
    return str(request.param)
