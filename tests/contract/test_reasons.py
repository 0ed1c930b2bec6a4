"""The contract lists every reason that the code can give, and no other."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import services
import shared
from bastide.types.v1 import error_pb2
from shared.errors import Error


def descendants(kind: type[Error]) -> Iterator[type[Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from descendants(child)


def test_every_reason_is_in_the_contract_and_every_one_there_is_given() -> None:
    for package in (services, shared):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    given = {kind.reason for kind in descendants(Error) if kind.__module__.startswith(("services.", "shared."))}
    listed = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert given == listed - {"UNSPECIFIED"}
