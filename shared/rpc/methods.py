"""The method table: every RPC of a service, how it is authorised, and what it records."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor


class Auth(enum.Enum):
    """How a method is authorised. See "Guarding everything else" in the architecture."""

    PUBLIC = "public"
    PEER = "peer"
    POLICY = "policy"
    SESSION = "session"


class Recording(enum.Enum):
    """What the chain records of an allowed call. Denials and refusals are recorded in any case."""

    NONE = "none"
    ACCESS = "access"  # one record, durable before the handler runs
    CHANGE = "change"  # one before the handler runs and one with its outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One row of a method table. Use the constructors below; each leaves no room for a half-declared row."""

    auth: Auth
    action: str = ""
    mfa: bool = False
    peers: frozenset[str] = frozenset()
    recording: Recording = Recording.NONE
    resource: str = ""
    facts: str = ""


def public(*, change: str = "") -> Method:
    """Anyone with a client certificate of the suite's CA, throttled by certificate.

    `change` is the action of a method that changes something for whom its request itself proves: its handler MUST set
    `call.principal` to them and await `call.allowed()` first.
    """
    return Method(auth=Auth.PUBLIC, action=change, recording=Recording.CHANGE if change else Recording.NONE)


def peer(*services: str) -> Method:
    """Exactly these services of the suite (`model-server`, ...), by SPIFFE id; no policy question, no record."""
    if not services:
        raise ValueError("a peer method names its peers")
    return Method(auth=Auth.PEER, peers=frozenset(services))


def read(action: str, resource: str, *, facts: str = "") -> Method:
    """A guarded read. `facts` names the servicer's coroutine that gathers attributes of the resource for policy."""
    return Method(auth=Auth.POLICY, action=action, resource=resource, recording=Recording.ACCESS, facts=facts)


def change(action: str, resource: str, *, mfa: bool, facts: str = "") -> Method:
    """A guarded change; `mfa` says that a recent second factor is demanded, which policy judges."""
    return Method(auth=Auth.POLICY, action=action, resource=resource, mfa=mfa, recording=Recording.CHANGE, facts=facts)


def session(action: str) -> Method:
    """A call whose guard session is its one decision; the handler opens the session and writes the records."""
    return Method(auth=Auth.SESSION, action=action)


class MethodTable(Mapping[str, Method]):
    """Full method name (`/package.Service/Method`) -> row. Refuses to exist unless it covers exactly its services."""

    def __init__(self, rows: Mapping[str, Mapping[str, Method]], services: Iterable[ServiceDescriptor]) -> None:
        """Take rows as service full name -> method name -> row, and the descriptors of all services served.

        Raises ValueError for a served method without a row or a row without a method.
        """
        self.descriptors: dict[str, MethodDescriptor] = {}
        self._rows: dict[str, Method] = {}
        named = {f"/{service}/{name}": row for service, methods in rows.items() for name, row in methods.items()}
        for service in services:
            for method in service.methods:
                self.descriptors[f"/{service.full_name}/{method.name}"] = method
        missing, unknown = self.descriptors.keys() - named.keys(), named.keys() - self.descriptors.keys()
        if missing or unknown:
            raise ValueError(f"method table: without a row {sorted(missing)}, without a method {sorted(unknown)}")
        self._rows = named

    def __getitem__(self, full_name: str) -> Method:
        """Return the row of a method. Raises KeyError."""
        return self._rows[full_name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over full method names."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return the number of methods."""
        return len(self._rows)
