"""Writes the Grafana dashboards: python -m tests.tools.dashboards. They lie in the chart, compose mounts the same files.

What a panel asks is here and nowhere else; tests hold each metric against those that our processes show.
"""

import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FOLDER = Path(__file__).resolve().parents[2] / "helm" / "agent-factory" / "files" / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
WIDTH = 8
HEIGHT = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: what it asks, by legend."""

    title: str
    unit: str
    queries: dict[str, str]


def share(part: str, whole: str) -> str:
    return f"sum(rate({part}[$__rate_interval])) / sum(rate({whole}[$__rate_interval]))"


def quantile(of: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({of}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


def rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


OVERVIEW = (
    Panel("Executions that ended", "ops", {"{{outcome}}": rate("af_executions_total", "outcome")}),
    Panel(
        "From acceptance to the end",
        "s",
        {"p50": quantile(0.5, "af_execution_seconds"), "p95": quantile(0.95, "af_execution_seconds")},
    ),
    Panel("Where the time goes, p95", "s", {"{{stage}}": quantile(0.95, "af_stage_seconds", "stage")}),
    Panel("Calls", "ops", {"{{method}}": rate("af_rpc_seconds_count", "method")}),
    Panel(
        "Calls that failed by our own fault",
        "percentunit",
        {
            "share": share(
                'af_rpc_seconds_count{code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DATA_LOSS"}', "af_rpc_seconds_count"
            )
        },
    ),
    Panel(
        "Slowest calls, p95", "s", {"{{method}}": f"topk(5, {quantile(0.95, 'af_rpc_seconds', 'method')})"}
    ),
    Panel("Queue: age of the oldest", "s", {"oldest": "max(af_queue_age_seconds)"}),
    Panel("Queue: length", "short", {"waiting": "max(af_queue_depth)"}),
    Panel("Slots", "short", {"used": "sum(af_slots_held)", "there are": "sum(af_slots)"}),
    Panel("Nodes connected", "short", {"sessions": "sum(af_sessions)"}),
    Panel("REST requests", "ops", {"{{status}}": rate("af_gateway_request_seconds_count", "status")}),
    Panel(
        "Caches: hits",
        "percentunit",
        {
            "{{cache}}": "sum by (cache) (rate(af_cache_hits_total[$__rate_interval])) / (sum by (cache)"
            " (rate(af_cache_hits_total[$__rate_interval])) + sum by (cache)"
            " (rate(af_cache_misses_total[$__rate_interval])))"
        },
    ),
)
NODE = (
    Panel("Free slots", "short", {"{{instance}}": "agentfactory_node_free_slots"}),
    Panel("Attempts", "ops", {"{{outcome}}": rate("agentfactory_node_attempts_total", "outcome")}),
    Panel("Orders refused", "ops", {"{{reason}}": rate("agentfactory_node_rejections_total", "reason")}),
    Panel("Stages, p95", "s", {"{{stage}}": quantile(0.95, "agentfactory_node_stage_seconds", "stage")}),
    Panel("Workers", "short", {"{{instance}}": "sum by (instance) (agentfactory_node_workers)"}),
    Panel(
        "Workers started and ended",
        "ops",
        {"{{event}}": rate("agentfactory_node_worker_events_total", "event")},
    ),
    Panel("Artifact cache", "ops", {"{{event}}": rate("agentfactory_node_artifact_cache_total", "event")}),
    Panel(
        "New modules, by where they were compiled",
        "ops",
        {
            "{{compiled}}": rate("agentfactory_node_new_modules_total", "compiled"),
            "not believed: {{reason}}": rate("agentfactory_node_refused_artifacts_total", "reason"),
        },
    ),
    Panel(
        "Compiling nodes",
        "ops",
        {
            "compiled": rate("agentfactory_compiler_modules_total"),
            "not compiled: {{reason}}": rate("agentfactory_compiler_failures_total", "reason"),
        },
    ),
    Panel("Spool", "bytes", {"{{instance}}": "agentfactory_node_spool_bytes"}),
    Panel("Receipts not acknowledged", "short", {"{{instance}}": "agentfactory_node_spool_receipts"}),
    Panel(
        "Leases that ended",
        "ops",
        {"{{instance}}": rate("agentfactory_node_lease_expiries_total", "instance")},
    ),
    Panel("Connected", "bool", {"{{instance}}": "agentfactory_node_connected"}),
    Panel("Size of the log it knows", "short", {"{{instance}}": "agentfactory_node_log_size"}),
)
SANDBOX = (
    Panel(
        "Layers that stand, nodes", "short", {"{{layer}}": "sum by (layer) (agentfactory_node_sandbox_layer)"}
    ),
    Panel(
        "How executions ended", "ops", {"{{outcome}}": rate("agentfactory_node_attempts_total", "outcome")}
    ),
    Panel(
        "Which limit stopped guests", "ops", {"{{limit}}": rate("agentfactory_node_limits_total", "limit")}
    ),
    Panel(
        "Modules refused for their crashes",
        "ops",
        {"quarantines": rate("agentfactory_node_quarantines_total")},
    ),
    Panel(
        "Host calls",
        "ops",
        {"{{method}} {{result}}": rate("agentfactory_node_host_calls_total", "method, result")},
    ),
    Panel(
        "Host calls, p95",
        "s",
        {"{{method}}": quantile(0.95, "agentfactory_node_host_call_seconds", "method")},
    ),
    Panel(
        "Bytes of host calls",
        "Bps",
        {"{{direction}}": rate("agentfactory_node_host_call_bytes_total", "direction")},
    ),
    Panel(
        "Recordings: compressed to",
        "percentunit",
        {
            "share": share(
                'agentfactory_node_recording_bytes_total{form="packed"}',
                'agentfactory_node_recording_bytes_total{form="plain"}',
            )
        },
    ),
)
SECURITY = (
    Panel(
        "Policy denials",
        "ops",
        {"{{question}} {{reason}}": rate("af_policy_denials_total", "question, reason")},
    ),
    Panel("Policy decisions, p95", "s", {"{{question}}": quantile(0.95, "af_policy_seconds", "question")}),
    Panel(
        "Signatures that did not verify",
        "ops",
        {
            "control plane: {{kind}}": rate("af_signature_failures_total", "kind"),
            "nodes": rate("agentfactory_node_signature_failures_total"),
        },
    ),
    Panel("Tokens for emergencies", "ops", {"used": rate("af_break_glass_total")}),
    Panel(
        "Policy in force", "short", {"version": "max(af_policy_version)", "loaded": "min(af_policy_loaded)"}
    ),
    Panel(
        "Keyset",
        "short",
        {"published": "max(af_keyset_version)", "{{instance}}": "agentfactory_node_keyset_version"},
    ),
    Panel("Age of the order key", "s", {"age": "max(af_order_key_age_seconds)"}),
    Panel("Custody", "short", {"up": "min(af_custody_up)"}),
    Panel("Signing, p95", "s", {"{{operation}}": quantile(0.95, "af_custody_seconds", "operation")}),
    Panel(
        "Log: size", "short", {"integrated": "max(af_log_size)", "witnessed": "max(af_log_witnessed_size)"}
    ),
    Panel("Log: the oldest that waits", "s", {"oldest": "max(af_log_waiting_seconds)"}),
    Panel(
        "Witnesses: since the last cosignature",
        "s",
        {"{{witness}}": "max by (witness) (af_log_witness_age_seconds)"},
    ),
    Panel(
        "Evidence",
        "short",
        {
            "receipts missing": "max(af_receipts_missing)",
            "findings: {{check}}": "max by (check) (af_evidence_findings)",
            "log stopped": "max(af_log_stopped)",
        },
    ),
)
TENANT = (
    Panel(
        "Executions that ended",
        "ops",
        {"{{tenant}}": rate("af_tenant_executions_total", "tenant")},
    ),
    Panel(
        "Share that did not succeed",
        "percentunit",
        {
            "{{tenant}}": "sum by (tenant) (rate(af_tenant_executions_total"
            '{outcome!="succeeded"}[$__rate_interval]))'
            " / sum by (tenant) (rate(af_tenant_executions_total[$__rate_interval]))"
        },
    ),
    Panel(
        "How they ended",
        "ops",
        {"{{tenant}} {{outcome}}": rate("af_tenant_executions_total", "tenant, outcome")},
    ),
    # Every replica asks the same database.
    Panel("Queue: age of the oldest", "s", {"{{tenant}}": "max by (tenant) (af_tenant_queue_age_seconds)"}),
    Panel("Policy denials", "ops", {"{{tenant}}": rate("af_tenant_policy_denials_total", "tenant")}),
)
DASHBOARDS: dict[str, tuple[str, Sequence[Panel]]] = {
    "overview": ("Agent Factory: overview", OVERVIEW),
    "node": ("Agent Factory: nodes", NODE),
    "sandbox": ("Agent Factory: sandbox", SANDBOX),
    "tenant": ("Agent Factory: tenants", TENANT),
    "security": ("Agent Factory: security and evidence", SECURITY),
}


def built(uid: str, title: str, panels: Sequence[Panel]) -> str:
    """Return a dashboard as Grafana reads it."""
    made = (
        dashboard.Dashboard(title)
        .uid(f"agentfactory-{uid}")
        .tags(["agentfactory"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
    )
    for panel in panels:
        picture = (
            timeseries.Panel()
            .title(panel.title)
            .datasource(SOURCE)
            .unit(panel.unit)
            .span(WIDTH)
            .height(HEIGHT)
            .min(0)
        )
        for letter, (legend, expression) in zip(string.ascii_uppercase, panel.queries.items(), strict=False):
            query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(letter)
            picture = picture.with_target(query.datasource(SOURCE))
        made = made.with_panel(picture)
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def files() -> dict[str, str]:
    """Return what the folder must hold, by name."""
    return {f"{uid}.json": built(uid, title, panels) for uid, (title, panels) in DASHBOARDS.items()}


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
