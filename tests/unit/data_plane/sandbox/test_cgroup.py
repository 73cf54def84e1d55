"""Where a node's groups are looked for, and in which order a v2 group is made ready; the kernel's part is tried elsewhere."""

import os
from pathlib import Path

import pytest

from data_plane.sandbox import cgroup
from data_plane.sandbox.cgroup import GroupBounds, NoGroupsError, OutOfMemory, open_groups

PID = str(os.getpid())
BOTH = "cpu memory pids"


def mount(root, point, kind, options="rw"):
    return f"30 24 0:26 {root} {point} rw,nosuid shared:9 - {kind} cgroup {options}\n"


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A v2 tree in which files are what was written to them, and a note of what was written in which order."""
    writes, files = [], {}

    def write(path, text):
        if path.name == "memory.swap.max":
            raise FileNotFoundError(path)
        writes.append((str(path.relative_to(tmp_path)), text))

    def read(path):
        return files[path] if path in files else Path(path).read_text()

    monkeypatch.setattr(cgroup, "_write", write)
    monkeypatch.setattr(cgroup, "_read", read)
    (tmp_path / "unit").mkdir()
    files[cgroup._MOUNTS] = mount("/", tmp_path, "cgroup2")
    files[cgroup._OWN] = "0::/unit\n"
    files[tmp_path / "unit" / "cgroup.controllers"] = BOTH
    files[tmp_path / "unit" / "cgroup.subtree_control"] = ""
    files[tmp_path / "unit" / "cgroup.procs"] = f"{PID}\n"
    (tmp_path / "unit" / "cgroup.events").touch()
    return tmp_path, files, writes


def test_a_node_alone_in_its_group_goes_to_a_leaf_before_it_hands_controllers_down(kernel):
    _, _, writes = kernel
    groups, state = open_groups()
    assert (state.active, state.detail) == (True, "v2: memory, swap, tasks")
    assert writes[:2] == [
        ("unit/node/cgroup.procs", PID),
        ("unit/cgroup.subtree_control", "+memory +pids"),
    ]
    del writes[:]
    group = groups.make(GroupBounds(memory_bytes=7, tasks=3))
    name = group.folders[0].name
    assert writes == [(f"unit/{name}/memory.max", "7"), (f"unit/{name}/pids.max", "3")]
    del writes[:]
    groups.done_with(group)
    groups.close()
    assert writes == [("unit/cgroup.subtree_control", "-memory -pids"), ("unit/cgroup.procs", PID)]
    assert not (kernel[0] / "unit" / "node").exists()


def test_a_node_in_a_leaf_of_that_name_makes_groups_beside_it(kernel):
    folder, files, writes = kernel
    (folder / "unit" / "node").mkdir()
    files[cgroup._OWN] = "0::/unit/node\n"
    groups, _ = open_groups()
    assert writes[0] == ("unit/cgroup.subtree_control", "+memory +pids")
    groups.close()
    assert (folder / "unit" / "node").exists()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("cgroup.procs", f"{PID}\n77\n", "other processes share"),
        ("cgroup.controllers", "cpu memory", "no memory and pids controllers"),
    ],
    ids=["shared", "without controllers"],
)
def test_a_group_that_is_not_the_nodes_alone_is_left_as_it_is(kernel, name, content, why):
    folder, files, writes = kernel
    files[folder / "unit" / name] = content
    groups, state = open_groups()
    assert (groups, state.active) == (None, False)
    assert why in state.detail
    assert writes == []


def test_a_refused_controller_moves_the_node_back(kernel, monkeypatch):
    _, _, writes = kernel
    write = cgroup._write

    def refuse(path, text):
        if text.startswith("+"):
            raise PermissionError(path)
        write(path, text)

    monkeypatch.setattr(cgroup, "_write", refuse)
    groups, state = open_groups()
    assert groups is None
    assert "cannot be changed" in state.detail
    assert writes[-1] == ("unit/cgroup.procs", PID)


@pytest.mark.parametrize(
    ("events", "whose"),
    [
        ("oom 0\noom_kill 0\n", None),
        ("oom 2\noom_kill 0\n", None),
        ("oom 1\noom_kill 1\n", OutOfMemory.GROUP),
        ("oom 0\noom_kill 1\n", OutOfMemory.MACHINE),
    ],
)
def test_whose_memory_ran_out(kernel, events, whose):
    _, files, _ = kernel
    groups, _ = open_groups()
    group = groups.make(GroupBounds(memory_bytes=7, tasks=3))
    assert group.out_of_memory() is None  # no such file
    files[group.folders[0] / "memory.events"] = events
    assert group.out_of_memory() is whose


def test_the_own_group_below_a_mount_of_a_part_of_the_tree():
    own = cgroup._own_groups("4:memory:/docker/abc/x\n8:pids:/docker/abc/x\n3:cpu,cpuacct:/\n0::/\n")
    mounts = cgroup._mounts(
        mount("/docker/abc", "/sys/fs/cgroup/memory", "cgroup", "rw,memory")
        + mount("/other", "/sys/fs/cgroup/pids", "cgroup", "rw,pids")
        + mount("/", "/", "tmpfs")
    )
    assert mounts["memory"] == ("/docker/abc", Path("/sys/fs/cgroup/memory"))
    assert cgroup._folder("pids", own, mounts) is None
    assert cgroup._folder("", own, mounts) is None
    with pytest.raises(NoGroupsError):
        cgroup._find(own, mounts)
