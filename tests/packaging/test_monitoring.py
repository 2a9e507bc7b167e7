"""Dashboard and alert rules speak of metrics that there are, in words that Prometheus understands."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from felixpy.observe.metrics import Metrics

CONFIG = Path(__file__).resolve().parents[2] / "config"
RULES = CONFIG / "prometheus" / "felixpy.rules.yaml"
DASHBOARD = CONFIG / "grafana" / "felixpy.json"


def expressions(path: Path) -> list[str]:
    if path == RULES:
        return [rule["expr"] for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    board = json.loads(path.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return found + [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]


def known() -> set[str]:
    """Names as Prometheus stores them."""
    names = set()
    for family in text_string_to_metric_families(Metrics("n1").text().decode()):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=["alerts", "dashboard"])
def test_every_metric_that_is_named_exists(path: Path) -> None:
    named = {name for text in expressions(path) for name in re.findall(r"\bfelix(?:py)?_\w+", text)}
    assert len(named) >= 7
    assert named - known() == set()


def test_alert_rules_are_good_and_fire_when_they_should() -> None:
    for call in (["check", "rules", "--lint-fatal", str(RULES)], ["test", "rules", "felixpy.test.yaml"]):
        done = subprocess.run(["promtool", *call], cwd=RULES.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_section_of_the_troubleshooting_page() -> None:
    page = (CONFIG.parent / "docs/troubleshooting.md").read_text()
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert f"\n### {rule['alert']}\n" in page
            assert rule["annotations"]["runbook_url"] == f"docs/troubleshooting.md#{rule['alert'].lower()}"


def test_expressions_of_the_dashboard_are_good(tmp_path: Path) -> None:
    """promtool reads rules only: each expression becomes one. Grafana puts its own variables in before it asks."""
    texts = [text.replace("$__rate_interval", "5m").replace("$node", ".*") for text in expressions(DASHBOARD)]
    rules = [{"record": "x:y", "labels": {"n": str(n)}, "expr": text}
             for n, text in enumerate(texts) if not text.startswith("label_values")]  # fmt: skip
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def labels_of(name: str) -> set[str]:
    """What a metric is told by, as its table says, which a test holds to the metrics; some are Prometheus' own."""
    page = (CONFIG.parent / "docs/metrics.md").read_text()
    base = re.sub(r"_(?:total|bucket|sum|count)$", "", name)
    row = re.search(rf"^\| `(?:{name}|{base})` \| \w+ \| ([^|]*)\|", page, re.MULTILINE)
    assert row, name
    return {*re.findall(r"`(\w+)`", row[1]), "instance", "job", "le"}


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=["alerts", "dashboard"])
def test_every_label_that_is_asked_for_exists(path: Path) -> None:
    for text in expressions(path):
        named = re.findall(r"\bfelix(?:py)?_\w+", text)
        known_labels = {"job"}.union(*map(labels_of, named))
        asked = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", text) for label in group.split(",")}
        asked |= set(re.findall(r"[{,]\s*(\w+)\s*=~?", text))
        assert asked <= known_labels, text


def test_legends_name_labels_that_their_queries_keep() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            (name, *_), group = re.findall(r"\bfelix(?:py)?_\w+", text), re.search(r"\bby \(([^)]*)\)", text)
            kept = {label.strip() for label in group[1].split(",")} if group else labels_of(name)
            assert set(re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))) <= kept, panel["title"]
