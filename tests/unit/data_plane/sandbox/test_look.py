"""What the node makes of the kernel's files about a worker: a lie, the truth, a process that is gone, or nothing to see."""

import pytest

from data_plane.sandbox import look
from data_plane.sandbox.domain import Layer, LayerState
from shared.errors import WorkerCrashedError

MONITOR, WORKER = 10, 11
STATUS = """Name:\tworker)
Uid:\t65534\t65534\t65534\t65534
NSpid:\t11\t1
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t3
"""
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max core file size        0                    0                    bytes
Max open files            1088                 1088                 files
"""
SEEN = (Layer.SECCOMP, Layer.NO_NEW_PRIVS, Layer.NOT_ROOT, Layer.NAMESPACES, Layer.RLIMITS)


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A worker behind its monitor, well jailed, as proc shows it."""
    monkeypatch.setattr(look, "_PROC", tmp_path)
    # Which namespaces are this process' own is kept, and another test may have asked already.
    monkeypatch.setattr(look, "_own_namespaces", look._own_namespaces.__wrapped__)
    for name, worker in ((str(WORKER), True), ("self", False)):
        (tmp_path / name / "ns").mkdir(parents=True)
        for kind in ("user", "pid", "net", "mnt", "ipc", "uts"):
            (tmp_path / name / "ns" / kind).symlink_to(f"{kind}:[{2 if worker else 1}]")
    (tmp_path / str(WORKER) / "status").write_text(STATUS)
    (tmp_path / str(WORKER) / "limits").write_text(LIMITS)
    children = tmp_path / str(MONITOR) / "task" / str(MONITOR)
    children.mkdir(parents=True)
    (children / "children").write_text(f"{WORKER} ")
    return tmp_path


def claims(*layers):
    return [LayerState(layer=layer, active=True, detail="") for layer in layers]


def test_a_worker_that_tells_the_truth_is_believed(proc):
    assert look.confirm(MONITOR, claims(*SEEN, Layer.LANDLOCK), SEEN) is True


@pytest.mark.parametrize(
    ("layer", "before", "after"),
    [
        (Layer.SECCOMP, "Seccomp:\t2", "Seccomp:\t0"),
        (Layer.SECCOMP, "Seccomp_filters:\t3", "Seccomp_filters:\t2"),
        (Layer.NO_NEW_PRIVS, "NoNewPrivs:\t1", "NoNewPrivs:\t0"),
        (Layer.NOT_ROOT, "CapEff:\t0000000000000000", "CapEff:\t0000000000000400"),
        (Layer.NOT_ROOT, "CapBnd:\t0000000000000000", "CapBnd:\t000001ffffffffff"),
        (Layer.NOT_ROOT, "Uid:\t65534\t65534\t65534", "Uid:\t65534\t65534\t0"),
        (Layer.NAMESPACES, "NSpid:\t11\t1", "NSpid:\t11"),
        (Layer.NAMESPACES, "NSpid:\t11\t1", "NSpid:\t11\t7"),
    ],
)
def test_a_claim_that_the_kernel_does_not_know_of_is_a_lie(proc, layer, before, after):
    status = proc / str(WORKER) / "status"
    status.write_text(STATUS.replace(before, after))
    with pytest.raises(WorkerCrashedError, match=f"claims {layer}, and the kernel"):
        look.confirm(MONITOR, claims(*SEEN), ())
    assert look.confirm(MONITOR, claims(*(set(SEEN) - {layer})), ()) is True


def test_a_namespace_shared_with_the_node_is_none(proc):
    shared = proc / str(WORKER) / "ns" / "net"
    shared.unlink()
    shared.symlink_to("net:[1]")
    with pytest.raises(WorkerCrashedError, match="claims namespaces"):
        look.confirm(MONITOR, claims(Layer.NAMESPACES), ())


@pytest.mark.parametrize(
    ("before", "after"), [("1088 ", "1089 "), ("0                    bytes", "1                    bytes")]
)
def test_limits_that_are_too_high_are_none(proc, before, after):
    limits = proc / str(WORKER) / "limits"
    limits.write_text(LIMITS.replace(before, after))
    with pytest.raises(WorkerCrashedError, match="claims rlimits"):
        look.confirm(MONITOR, claims(Layer.RLIMITS), ())


def test_a_demanded_layer_that_is_not_claimed_is_missed(proc):
    with pytest.raises(WorkerCrashedError, match="without landlock, which is demanded"):
        look.confirm(MONITOR, claims(*SEEN), [Layer.LANDLOCK])


def test_a_worker_that_is_gone_was_not_seen(proc):
    (proc / str(MONITOR) / "task" / str(MONITOR) / "children").write_text("")
    assert look.confirm(MONITOR, claims(*SEEN), ()) is False


def test_where_processes_are_hidden_there_is_nothing_to_see(proc):
    (proc / str(WORKER) / "status").unlink()
    assert look.confirm(MONITOR, claims(*SEEN), ()) is True
    (proc / str(MONITOR)).rename(proc / "hidden")
    assert look.confirm(MONITOR, claims(*SEEN), ()) is True


def test_cpu_time_is_read_behind_any_name(proc):
    fields = " ".join(
        ["S", *map(str, range(1, 11)), str(3 * look.CLOCK_TICKS), str(2 * look.CLOCK_TICKS), "0"]
    )
    (proc / str(WORKER) / "stat").write_text(f"11 (a) b (c) {fields}\n")
    assert look.cpu_seconds(WORKER) == 5.0
    assert look.cpu_seconds(999) is None
