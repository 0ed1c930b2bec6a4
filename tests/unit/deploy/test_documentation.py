"""What the services' READMEs state about configuration and missing methods is what the code says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.audit.config import AuditSettings
from services.audit.methods import ROWS as AUDIT
from services.audit.service import AuditService, LogService
from services.model_server.catalog_service import CatalogService
from services.model_server.config import ModelServerSettings
from services.model_server.inference_service import InferenceService
from services.model_server.methods import ROWS as MODEL_SERVER
from services.policy_guard.config import PolicyGuardSettings
from services.policy_guard.guard_service import GuardService
from services.policy_guard.identity_service import IdentityService
from services.policy_guard.methods import ROWS as POLICY_GUARD
from services.policy_guard.policy_service import PolicyService
from shared.config import Settings
from tests.suite import ROOT

SERVICERS = {
    servicer.__name__: servicer
    for servicer in (
        AuditService,
        LogService,
        GuardService,
        PolicyService,
        IdentityService,
        InferenceService,
        CatalogService,
    )
}


def settings(model: type[Settings], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = next((item for item in candidates if isinstance(item, type) and issubclass(item, Settings)), None)
        if nested is None or str(field.annotation).startswith("dict"):
            yield above + name
        else:
            yield from settings(nested, f"{above}{name}{'[]' if 'tuple' in str(field.annotation) else ''}.")


@pytest.mark.parametrize(
    ("service", "model"),
    [("audit", AuditSettings), ("policy_guard", PolicyGuardSettings), ("model_server", ModelServerSettings)],
)
def test_every_setting_stands_in_the_readme(service: str, model: type[Settings]) -> None:
    text = (ROOT / "services" / service / "README.md").read_text()
    assert [name for name in settings(model) if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("service", "rows"), [("audit", AUDIT), ("policy_guard", POLICY_GUARD), ("model_server", MODEL_SERVER)]
)
def test_exactly_the_missing_methods_stand_under_not_built_yet(
    service: str, rows: dict[str, dict[str, object]]
) -> None:
    section = (ROOT / "services" / service / "README.md").read_text().split("## Not built yet")[1]
    for name, methods in rows.items():
        short = name.rsplit(".", 1)[-1]
        for method in methods:
            built = hasattr(SERVICERS.get(short, object), method)
            assert (f"`{short}.{method}`" in section) is not built, f"{short}.{method}"
