"""The judgement after a change of colours: which failures count, and what happens to counts that went away."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from control_plane.metrics import ControlMetrics

PATH = Path(__file__).resolve().parents[3] / "docker" / "error_rate.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("error_rate", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["error_rate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("before", "after", "good"),
    [
        ({}, {"OK": 99, "INTERNAL": 1}, True),
        ({}, {"OK": 98, "INTERNAL": 2}, False),
        ({"INTERNAL": 5}, {"OK": 10, "INTERNAL": 5}, True),  # of before the change
        ({}, {"OK": 1, "NOT_FOUND": 9, "PERMISSION_DENIED": 9}, True),  # the caller's fault
        ({"OK": 100}, {"OK": 3, "UNAVAILABLE": 1}, False),  # a pod went, its counts with it
        ({}, {}, True),
    ],
)
def test_only_our_own_failures_count(script, before, after, good):
    assert script.judge(Counter(before), Counter(after), 0.01)[0] is good


def test_counts_are_read_as_our_metrics_say_them(script):
    registry = CollectorRegistry()
    metrics = ControlMetrics(registry)
    metrics.rpc("/agentfactory.v1.ExecutionService/Execute", "OK", 0.1)
    found = script.LINE.findall(generate_latest(registry).decode())
    assert [(code, float(count)) for code, count in found] == [("OK", 1.0)]
