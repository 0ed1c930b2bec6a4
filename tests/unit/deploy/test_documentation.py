"""What the services' READMEs state about configuration and missing methods is what the code says."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

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
from shared.cli.main import app
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


def documents() -> list[Path]:
    folders = ("deploy", "protos", "services", "shared", "tests")
    return [*ROOT.glob("*.md"), *(path for name in folders for path in (ROOT / name).rglob("*.md"))]


def command_of(words: list[str]) -> list[str]:
    """Return the longest known command that `words` begin with, as `bastide` spells it."""
    found: Any = typer.main.get_command(app)
    path: list[str] = []
    for word in words:
        if word not in getattr(found, "commands", {}):
            break
        found = found.commands[word]
        path.append(word)
    return path if not getattr(found, "commands", {}) else []


def test_every_command_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen, wrong = 0, []
    for path in documents():
        lines = [line for line in path.read_text().splitlines() if line.startswith("    ")]
        for text in [*re.findall(r"`([^`\n]+)`", path.read_text()), *lines]:
            for part in re.split(r"&&|;|#", text):
                match part.split():
                    case ["make", target, *_] if target not in targets:
                        wrong.append((path.name, part))
                    case ["bastide", *words] if words and not command_of(words):
                        wrong.append((path.name, part))
                    case ["python", "-m", module, *_] if module.startswith("services."):
                        seen += 1
                        if importlib.util.find_spec(module) is None:
                            wrong.append((path.name, part))
                    case ["make" | "bastide", *_]:
                        seen += 1
    assert not wrong
    assert seen > 20


def test_the_readme_shows_the_example_client_as_it_is() -> None:
    code = (ROOT / "deploy/examples/backend_client.py").read_text()
    assert code.split('"""\n\n', 1)[1] in (ROOT / "README.md").read_text()


def test_every_link_in_the_documents_leads_somewhere() -> None:
    broken = []
    for path in documents():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if "://" not in link and not (path.parent / link).exists():
                broken.append((str(path.relative_to(ROOT)), link))
    assert not broken


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
