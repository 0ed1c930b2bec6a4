"""Alerts, dashboards and runbooks speak of metrics, labels, reasons, commands and headings that exist."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from services.audit import server as audit
from services.model_server import server as model_server
from services.policy_guard import server as policy_guard
from shared import errors, observability
from shared.cli import setup
from shared.cli.main import app
from tests import tools
from tests.suite import ROOT

ALERTS = ROOT / "deploy/alerts/bastide.yaml"
ALERT_TESTS = ROOT / "deploy/alerts/bastide_test.yaml"
DASHBOARDS = sorted((ROOT / "deploy/dashboards").glob("*.json"))
RUNBOOKS = sorted((ROOT / "deploy/runbooks").glob("*.md"))
SERVED = (audit, policy_guard, model_server)  # importing them declares the metrics
JOBS = {f"bastide-{service}" for service in setup.SERVICES}
# `up` is Prometheus' own; the rest is added to every series by the scrape or by histograms.
BUILT_IN_METRICS = {"up"}
BUILT_IN_LABELS = {"job", "instance", "le"}
OURS = ("bastide_", "gen_ai_", "grpc_server_")
# The audit service imports the writers' side of itself, which has an outbox; it has none.
NOT_SHOWN = {"audit": {("bastide_outbox_records", "state"), ("bastide_outbox_oldest_age_seconds",)}}
# Words of PromQL that may stand where a metric could.
WORDS = {"and", "or", "unless", "offset", "bool"}
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
BRACKETS = {")": "(", "]": "[", "}": "{"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels(path: Path) -> Iterator[dict[str, Any]]:
    for panel in json.loads(path.read_text())["panels"]:
        yield panel
        yield from panel.get("panels", ())


def queries(path: Path) -> list[str]:
    """Return the expressions of a dashboard, Grafana's variables replaced by what they may stand for."""
    document = json.loads(path.read_text())
    found = [target["expr"] for panel in panels(path) for target in panel.get("targets", ())]
    found += [item["expr"] for item in document["annotations"]["list"]]
    return [text.replace("$__rate_interval", "5m").replace("$job", "bastide-.+") for text in found]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [text for path in DASHBOARDS for text in queries(path)]


def declared() -> dict[str, set[str]]:
    """Return the label names of every series that a scrape of a service may show, by the series' name."""
    found: dict[str, set[str]] = {}
    for collector in list(REGISTRY._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            found.update({family.name + suffix: labels for suffix in suffixes})
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = grouped(rule["expr"])
    return found


def grouped(expression: str) -> set[str]:
    """Return the labels by which an expression groups."""
    return {label for group in GROUPING.findall(expression) for label in re.findall(r"\w+", group)}


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return the metrics of an expression, each with its matchers as (label, operator, value)."""
    text = GROUPING.sub(" ", expression)
    found = []
    for match in re.finditer(r'"[^"]*"|(?<![\w:.\[])([a-zA-Z_:][\w:]*)\s*(\(|\{[^}]*\})?', text):
        name, rest = match.group(1), match.group(2) or ""
        if name is None or rest == "(" or name in WORDS:
            continue
        found.append((name, re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', rest)))
    return found


def headings(path: Path) -> dict[str, str]:
    """Return the headings of a document by their anchors, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"): text for text in found}


def subclasses(kind: type[errors.Error]) -> Iterator[type[errors.Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_metrics_labels_and_values_that_exist(expression: str) -> None:
    series = declared()
    known = {
        "reason": {kind.reason for kind in subclasses(errors.Error)},
        "grpc_method": {method for part in SERVED for rows in part.methods.ROWS.values() for method in rows},
        "job": JOBS,
        "state": {"waiting", "aside", "running", "queued"},
        "certificate": {"own", "authority"},
    }
    code = "".join(
        (ROOT / "services").joinpath(name, "server.py").read_text() for name in ("policy_guard", "model_server")
    )
    known["work"] = set(re.findall(r'repeating\(.+?name="([\w-]+)"', code, re.DOTALL))
    found = selectors(expression)
    assert found
    carried = set(BUILT_IN_LABELS)
    for name, matchers in found:
        assert name in series or name in BUILT_IN_METRICS, name
        labels = series.get(name, set()) | BUILT_IN_LABELS
        carried |= labels
        for label, operator, value in matchers:
            assert label in labels, f"{name}{{{label}}}"
            for item in value.split("|") if label in known and value != "bastide-.+" else ():
                assert item in known[label], f"{label}{operator}{item}"
    assert grouped(expression) <= carried


@pytest.mark.parametrize("expression", expressions())
def test_the_brackets_of_an_expression_are_balanced(expression: str) -> None:
    waiting: list[str] = []
    assert expression.count('"') % 2 == 0
    for character in re.sub(r'"[^"]*"', "", expression):
        if character in BRACKETS.values():
            waiting.append(character)
        elif character in BRACKETS:
            assert waiting
            assert waiting.pop() == BRACKETS[character]
    assert not waiting


def test_every_alert_says_what_how_bad_and_where_to_read_on() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names)) > 20
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert headings(ROOT / path)[anchor] == alert["alert"]


def test_every_section_about_an_alert_is_of_one_that_exists() -> None:
    written = {text for path in RUNBOOKS for text in headings(path).values() if re.fullmatch(r"Bastide[A-Z]\w+", text)}
    assert written == {alert["alert"] for alert in alerts()}


def test_templates_of_alerts_use_labels_that_the_expression_keeps() -> None:
    for alert in alerts():
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(alert["annotations"].values())))
        aggregated = re.search(r"\b(sum|max|min|histogram_quantile)\b", alert["expr"])
        assert used <= (grouped(alert["expr"]) if aggregated else BUILT_IN_LABELS), alert["alert"]


def test_every_anchor_in_the_runbooks_leads_to_a_heading() -> None:
    for path in RUNBOOKS:
        for file, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", path.read_text()):
            assert anchor in headings(path.parent / file if file else path), (path.name, anchor)


def test_every_event_in_the_runbooks_is_logged_somewhere() -> None:
    code = "\n".join(path.read_text() for folder in ("services", "shared") for path in (ROOT / folder).rglob("*.py"))
    logged = set(re.findall(r"\b_?log(?:ger)?\.(?:info|warning|error)\(\s*\"(\w+)\"", code))
    for path in RUNBOOKS:
        text = path.read_text()
        table = text.split("| log event | means |")[1].split("\n\n")[0] if "| log event |" in text else ""
        named = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
        named |= set(re.findall(r'\.event == "(\w+)"', text))
        assert named <= logged, (path.name, named - logged)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_takes_its_data_source_from_a_variable_and_places_each_panel_once(path: Path) -> None:
    document = json.loads(path.read_text())
    assert document["schemaVersion"] >= 39
    assert {item["name"]: item["type"] for item in document["templating"]["list"]}["datasource"] == "datasource"
    found = list(panels(path))
    assert len({panel["id"] for panel in found}) == len(found)
    cells: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        cells |= taken
        if panel["type"] != "row":
            assert panel["targets"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_every_legend_names_labels_that_its_query_keeps() -> None:
    series = declared()
    for path in DASHBOARDS:
        targets = [target for panel in panels(path) for target in panel.get("targets", ())]
        assert all(target["legendFormat"] for target in targets)
        for target in targets:
            used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            aggregated = re.search(r"\b(sum|max|min|count|histogram_quantile)\b", target["expr"])
            kept = [series.get(name, set()) | BUILT_IN_LABELS for name, _ in selectors(target["expr"])]
            assert used <= (grouped(target["expr"]) if aggregated else set().union(*kept)), target["legendFormat"]


@pytest.mark.parametrize("service", setup.SERVICES)
def test_the_readme_of_a_service_lists_its_metrics(service: str) -> None:
    package = service.replace("-", "_")
    code = (
        f"import services.{package}.server; from prometheus_client import REGISTRY, Counter, Gauge, Histogram\n"
        "for metric in REGISTRY._collector_to_names:\n"
        "    if isinstance(metric, Counter | Gauge | Histogram):\n"
        "        print(metric._name + '_total' * isinstance(metric, Counter), *metric._labelnames)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    declared = {(name, *labels) for name, *labels in map(str.split, shown.splitlines()) if name.startswith(OURS)}
    table = (ROOT / "services" / package / "README.md").read_text().split("## Metrics")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)(?:\{([\w,]+)\})?` \|", table, re.MULTILINE)
    assert {(name, *filter(None, labels.split(","))) for name, labels in rows} == declared - NOT_SHOWN.get(
        service, set()
    )


def test_no_metric_has_a_label_for_people_or_calls() -> None:
    forbidden = {"principal", "subject", "tenant", "call_id", "request_id", "workload", "prompt", "job", "instance"}
    shown = {name: labels for name, labels in declared().items() if name.startswith(OURS)}
    assert len(shown) > 20
    assert not [name for name, labels in shown.items() if labels & forbidden]


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    shown = {name for path in DASHBOARDS for text in queries(path) for name, _ in selectors(text)}
    for collector in REGISTRY._collector_to_names:
        if isinstance(collector, Counter | Gauge | Histogram):
            (family, *_) = collector.collect()
            if not family.name.startswith(OURS):
                continue  # a library's
            assert any(name.startswith(family.name) for name in shown), family.name


def test_the_scrape_jobs_are_the_services_at_their_sample_ports() -> None:
    (block,) = re.findall(r"```yaml\n(.+?)```", (ROOT / "deploy/README.md").read_text(), re.DOTALL)
    document = yaml.safe_load(block)
    assert [ALERTS.parent.parent / name for name in document["rule_files"]] == [ALERTS]
    found = {item["job_name"]: item["static_configs"][0]["targets"][0] for item in document["scrape_configs"]}
    assert set(found) == JOBS
    for service in setup.SERVICES:
        host, port = found[f"bastide-{service}"].split(":")
        assert host == service
        assert f'probes = "0.0.0.0:{port}"' in (ROOT / f"deploy/config/{service}.toml").read_text()


def promtool(*arguments: object) -> None:
    # Debian's package `prometheus` has it.
    program = tools.need("promtool")
    ended = subprocess.run([program, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_promtool_accepts_the_rules_and_the_queries(tmp_path: Path) -> None:
    queried = [{"record": "query", "expr": text} for path in DASHBOARDS for text in queries(path)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": queried}]}))
    promtool("check", "rules", "--lint=none", ALERTS, tmp_path / "queries.yaml")


def test_each_alert_fires_for_what_it_is_about_and_not_before() -> None:
    assert [test["name"] for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]] == [a["alert"] for a in alerts()]
    promtool("test", "rules", ALERT_TESTS)


def command_lines(*beginnings: str) -> list[tuple[str, str]]:
    return [
        (path.name, line)
        for path in RUNBOOKS
        for block in re.findall(r"```sh\n(.+?)```", path.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.startswith(beginnings)
    ]


BASTIDE = command_lines("bastide ")
SERVICE = command_lines("python -m services.")
SNIPPETS = command_lines("python -c ")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runbooks") / "home"
    mask = os.umask(0o077)
    try:
        setup.create(folder)
    finally:
        os.umask(mask)
    return folder


def words_of(line: str, home: Path) -> list[str]:
    return shlex.split(line.replace("$BASTIDE_HOME", str(home)))


def parse(command: Any, words: Sequence[str], above: Any = None) -> None:
    """Read `words` as `bastide` would, down to the last command, and run nothing."""
    with command.make_context(command.name, list(words), parent=above) as context:
        if hasattr(command, "commands"):
            _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert found is not None
            parse(found, rest, context)


@pytest.mark.parametrize(("name", "line"), BASTIDE)
def test_bastide_takes_the_commands_of_the_runbooks(
    name: str, line: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    parse(typer.main.get_command(app), words_of(line, home)[1:])


@pytest.mark.parametrize(("name", "line"), SERVICE)
def test_the_services_take_the_commands_of_the_runbooks(
    name: str, line: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command runs, except that nothing is served."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(observability, "configure", lambda *_, **__: None)
    for part in SERVED:
        monkeypatch.setattr(part, "serve", served)
    words = words_of(line, home)
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(words[2], run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr()
    assert capsys.readouterr().out


async def served(_: object) -> None:
    raise AssertionError("a runbook starts services with `bastide up`")


@pytest.mark.parametrize(("name", "line"), SNIPPETS)
def test_the_snippets_of_the_runbooks_run(name: str, line: str, home: Path) -> None:
    subprocess.run([sys.executable, *words_of(line, home)[1:]], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_the_runbooks_show_commands() -> None:
    assert len(BASTIDE) > 20
    assert len(SERVICE) == 2 * len(SERVED)
    assert len(SNIPPETS) == 2
