"""The method tables of the services as their servers hold them."""

from __future__ import annotations

from services.audit.methods import ROWS as AUDIT
from services.audit.methods import SERVICES as AUDIT_SERVICES
from services.model_server.methods import ROWS as MODEL_SERVER
from services.model_server.methods import SERVICES as MODEL_SERVER_SERVICES
from services.policy_guard.methods import ROWS as POLICY_GUARD
from services.policy_guard.methods import SERVICES as POLICY_GUARD_SERVICES
from shared.rpc.methods import MethodTable
from shared.rpc.server import _COMMON, HEALTH, REFLECTION

TABLES = {
    "audit": MethodTable({**AUDIT, **_COMMON}, [*AUDIT_SERVICES, HEALTH, REFLECTION]),
    "policy-guard": MethodTable({**POLICY_GUARD, **_COMMON}, [*POLICY_GUARD_SERVICES, HEALTH, REFLECTION]),
    "model-server": MethodTable({**MODEL_SERVER, **_COMMON}, [*MODEL_SERVER_SERVICES, HEALTH, REFLECTION]),
}
