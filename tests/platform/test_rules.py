"""The alerts: each fires when it should and is silent otherwise (promtool), has a page in the runbook and real metrics."""

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import dashboards

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "docs" / "runbook"
RULES = ROOT / "helm" / "agent-factory" / "files" / "rules.yaml"
LABEL = re.compile(r"\{\{ \$labels\.([a-z_]+) \}\}")
METRIC = re.compile(r"\b(?:af|agentfactory)_[a-z_]+\b")
SUFFIX = re.compile(r"_(total|bucket|count|sum)$")
MINUTES = 400

CALLS = 'af_rpc_seconds_count{code="%s", method="ExecutionService/Execute"}'
NODE = {"instance": "n1"}
# name: (series that fire it, series that do not, labels of what fires)
CASES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "CallsFailFast": (
        {CALLS % "OK": "0+98x400", CALLS % "INTERNAL": "0+2x400"},
        {CALLS % "OK": "0+99x400", CALLS % "INTERNAL": "0+1x400", CALLS % "NOT_FOUND": "0+50x400"},
        {},
    ),
    "CallsFailSlow": (
        {CALLS % "OK": "0+99x400", CALLS % "UNAVAILABLE": "0+1x400"},
        {CALLS % "OK": "0+999x400", CALLS % "UNAVAILABLE": "0+1x400"},
        {},
    ),
    "ExecutionsSlowFast": (
        {'af_execution_seconds_bucket{le="0.1"}': "0+1x400", "af_execution_seconds_count": "0+10x400"},
        {'af_execution_seconds_bucket{le="0.1"}': "0+9x400", "af_execution_seconds_count": "0+10x400"},
        {},
    ),
    "ExecutionsSlowSlow": (
        {'af_execution_seconds_bucket{le="0.1"}': "0+6x400", "af_execution_seconds_count": "0+10x400"},
        {'af_execution_seconds_bucket{le="0.1"}': "0+8x400", "af_execution_seconds_count": "0+10x400"},
        {},
    ),
    "ProcessDown": (
        {'up{job="agentfactory-node", instance="n1"}': "0x400"},
        {'up{job="agentfactory-node", instance="n1"}': "1x400", 'up{job="other", instance="n1"}': "0x400"},
        {"job": "agentfactory-node", **NODE},
    ),
    "NoNodes": ({"af_sessions": "0x400"}, {"af_sessions": "1x400"}, {}),
    "QueueOld": ({"af_queue_age_seconds": "11x400"}, {"af_queue_age_seconds": "2x400"}, {}),
    "SlotsUsedUp": (
        {"af_slots_held": "20x400", "af_slots": "20x400"},
        {"af_slots_held": "10x400", "af_slots": "20x400"},
        {},
    ),
    "LeasesExpire": ({"af_lease_expiries_total": "0+1x400"}, {"af_lease_expiries_total": "7x400"}, {}),
    "SpoolFills": (
        {'agentfactory_node_spool_bytes{instance="n1"}': "1000000000x400"},
        {'agentfactory_node_spool_bytes{instance="n1"}': "1000x400"},
        NODE,
    ),
    "NodeDisconnected": (
        {'agentfactory_node_connected{instance="n1"}': "0x400"},
        {'agentfactory_node_connected{instance="n1"}': "1x400"},
        NODE,
    ),
    "ModuleQuarantined": (
        {'agentfactory_node_quarantines_total{instance="n1"}': "0+1x400"},
        {'agentfactory_node_quarantines_total{instance="n1"}': "1x400"},
        NODE,
    ),
    "PolicyNotLoaded": ({"af_policy_loaded": "0x400"}, {"af_policy_loaded": "1x400"}, {}),
    "BreakGlassUsed": ({"af_break_glass_total": "0+1x400"}, {"af_break_glass_total": "3x400"}, {}),
    "ForgedSignature": (
        {'agentfactory_node_signature_failures_total{instance="n1"}': "0+1x400"},
        {'agentfactory_node_signature_failures_total{instance="n1"}': "0x400"},
        {},
    ),
    "KeyCustodyAway": ({"af_custody_up": "0x400"}, {"af_custody_up": "1x400"}, {}),
    "OrderKeyMissing": ({"af_order_key_age_seconds": "-1x400"}, {"af_order_key_age_seconds": "9x400"}, {}),
    "OrderKeyOld": (
        {"af_order_key_age_seconds": "60000000x400"},
        {"af_order_key_age_seconds": "50000000x400"},
        {},
    ),
    "FreshnessOld": ({"af_freshness_age_seconds": "50x400"}, {"af_freshness_age_seconds": "10x400"}, {}),
    "NodeKeysetBehind": (
        {"af_keyset_version": "4x400", 'agentfactory_node_keyset_version{instance="n1"}': "3x400"},
        {"af_keyset_version": "4x400", 'agentfactory_node_keyset_version{instance="n1"}': "4x400"},
        NODE,
    ),
    "CertificateEnds": (
        {'agentfactory_node_certificate_seconds{instance="n1"}': "14000x400"},
        {
            'agentfactory_node_certificate_seconds{instance="n1"}': "29000x400",
            'af_certificate_seconds{certificate="server", instance="c1"}': "864000x400",
        },
        NODE,
    ),
    "CompiledArtifactsRefused": (
        {'agentfactory_node_refused_artifacts_total{reason="UNKNOWN_KEY", instance="n1"}': "0+1x400"},
        {
            'agentfactory_node_refused_artifacts_total{reason="UNAVAILABLE", instance="n1"}': "0+1x400",
            'agentfactory_node_refused_artifacts_total{reason="UNKNOWN_KEY", instance="n1"}': "3x400",
        },
        NODE,
    ),
    "CompilerIdle": (
        {'agentfactory_compiler_ready{instance="n1"}': "0x400"},
        # Its key was listed within half an hour; afterwards it was restarted.
        {'agentfactory_compiler_ready{instance="n1"}': "0x20 1x350 0x29"},
        NODE,
    ),
    "BackupOld": ({"af_backup_age_seconds": "100000x400"}, {"af_backup_age_seconds": "80000x400"}, {}),
    "ReceiptsMissing": ({"af_receipts_missing": "1x400"}, {"af_receipts_missing": "0x400"}, {}),
    "LogBehind": ({"af_log_waiting_seconds": "90x400"}, {"af_log_waiting_seconds": "1x400"}, {}),
    "EvidenceAltered": (
        {'af_evidence_findings{check="tree"}': "1x400"},
        {'af_evidence_findings{check="tree"}': "0x400"},
        {"check": "tree"},
    ),
    "LogStopped": ({"af_log_stopped": "1x400"}, {"af_log_stopped": "0x400"}, {}),
    "LogForked": (
        {'agentfactory_node_log_forked{instance="n1"}': "1x400"},
        {'agentfactory_node_log_forked{instance="n1"}': "0x400"},
        NODE,
    ),
    "WitnessAway": (
        {'af_log_witness_age_seconds{witness="w1"}': "4000x400"},
        {'af_log_witness_age_seconds{witness="w1"}': "40x400"},
        {"witness": "w1"},
    ),
    "TemplateQuarantined": (
        {"af_template_quarantines_total": "0+1x400"},
        {"af_template_quarantines_total": "1x400"},
        {},
    ),
}


OTHER_PARTS: tuple[tuple[str, tuple[dict[str, str], dict[str, str], dict[str, str]]], ...] = (
    (
        "CertificateEnds",
        (
            {
                'af_certificate_seconds{certificate="server", instance="c1"}': "250000x400",
                'af_certificate_seconds{certificate="authority", instance="c1"}': "90000000x400",
            },
            {'af_certificate_seconds{certificate="gateway", instance="g1"}': "864000x400"},
            {"instance": "c1"},
        ),
    ),
    (
        "CertificateEnds",
        (
            {'agentfactory_compiler_certificate_seconds{instance="n1"}': "14000x400"},
            {'agentfactory_compiler_certificate_seconds{instance="n1"}': "29000x400"},
            NODE,
        ),
    ),
    (
        "CompiledArtifactsRefused",
        (
            {'agentfactory_node_refused_artifacts_total{reason="UNKNOWN_KEY", instance="n1"}': "_x380 1x20"},
            {'agentfactory_node_refused_artifacts_total{reason="UNAVAILABLE", instance="n1"}': "_x380 1x20"},
            NODE,
        ),
    ),
)
"""The other parts of alerts that look at several things."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Return what the dashboards ask."""
    panels = [panel for _, shown in dashboards.DASHBOARDS.values() for panel in shown]
    return [query for panel in panels for query in panel.queries.values()]


@cache
def ours() -> frozenset[str]:
    """Return the names of metrics in our sources."""
    sources = "".join(
        path.read_text() for plane in ("control_plane", "data_plane") for path in (ROOT / plane).rglob("*.py")
    )
    return frozenset(re.findall(r'"((?:af|agentfactory)_[a-z_]+)"', sources))


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [os.environ["PROMTOOL"], *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_and_a_page():
    pages = {page.stem for page in RUNBOOK.glob("*.md")} - {"README"}
    assert set(CASES) == set(alerts()) == pages
    rows = dict(
        re.findall(
            r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \| .+ \|$", (RUNBOOK / "README.md").read_text(), re.MULTILINE
        )
    )
    assert rows == {name: rule["labels"]["severity"] for name, rule in alerts().items()}
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook/{name}.md"
        assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.parametrize("name", sorted(alerts()))
def test_each_page_says_what_it_means_what_to_check_and_how_to_fix_it(name):
    text = (RUNBOOK / f"{name}.md").read_text()
    page = re.fullmatch(
        rf"# {name}\n\nSeverity: (\w+)\.\n\n## Meaning\n\n(.+)\n## Check\n\n(.+)\n## Fix\n\n(.+)\n",
        text,
        re.DOTALL,
    )
    assert page, "title, severity, then the parts Meaning, Check, Fix"
    assert page[1] == alerts()[name]["labels"]["severity"]
    assert not re.search(r"^## ", "\n".join(page.groups()[1:]), re.MULTILINE)
    known = ours()
    assert {
        metric for metric in METRIC.findall(text) if not {metric, SUFFIX.sub("", metric)} & known
    } == set()


def test_every_metric_is_one_that_our_processes_show():
    named = {metric for rule in rules() for metric in METRIC.findall(rule["expr"])}
    assert {
        metric for metric in named if SUFFIX.sub("", metric) not in ours() and metric not in ours()
    } == set()


def test_the_dashboards_are_as_made_and_show_metrics_that_there_are():
    folder = RULES.parent / "dashboards"
    assert {path.name: path.read_text() for path in folder.iterdir()} == dashboards.files()
    named = {metric for expression in expressions() for metric in METRIC.findall(expression)}
    assert {
        metric for metric in named if SUFFIX.sub("", metric) not in ours() and metric not in ours()
    } == set()


@pytest.mark.parametrize(
    ("name", "case"),
    [*CASES.items(), *OTHER_PARTS],
    ids=[*CASES, *(f"{name}, part {number}" for number, (name, _) in enumerate(OTHER_PARTS))],
)
def test_it_fires_when_it_should_and_only_then(name, case, tmp_path):
    fires, silent, labels = case
    rule = alerts()[name]
    told = {
        key: LABEL.sub(lambda found: labels[found[1]], value) for key, value in rule["annotations"].items()
    }
    expected = [{"exp_labels": {**rule["labels"], **labels}, "exp_annotations": told}]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "alert_rule_test": [{"eval_time": f"{MINUTES - 10}m", "alertname": name, "exp_alerts": wanted}],
        }
        for given, wanted in ((fires, expected), (silent, []))
    ]
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)
