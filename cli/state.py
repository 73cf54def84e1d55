"""What `agentfactory up` leaves in a data folder while it runs: addresses and process ids. Starts nothing."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

STACK_FILE: Final = "up.json"
LOCK_FILE: Final = "up.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One running `up`."""

    target: str
    """host:port of the control plane's gRPC (mTLS)."""
    enroll_target: str
    control_admin: str
    node_admin: str
    up_pid: int
    postgres_pid: int
    control_plane_pid: int
    node_pid: int
    node_id: str
    started_at: str
    gateway: str = ""
    """host:port of REST; empty: none runs."""
    gateway_admin: str = ""
    gateway_pid: int = 0

    def processes(self) -> dict[str, int]:
        found = {
            "up": self.up_pid,
            "postgres": self.postgres_pid,
            "control plane": self.control_plane_pid,
            "node": self.node_pid,
        }
        return found | ({"gateway": self.gateway_pid} if self.gateway_pid else {})

    def readiness(self) -> dict[str, str]:
        """Return where each process says whether it is ready."""
        found = {"control plane": self.control_admin, "node": self.node_admin}
        return found | ({"gateway": self.gateway_admin} if self.gateway_pid else {})


def write_stack(data_dir: Path, stack: Stack) -> None:
    """Record a running stack, whole or not at all."""
    temporary = data_dir / f".{STACK_FILE}"
    temporary.write_text(json.dumps(asdict(stack), indent=2), encoding="utf-8")
    temporary.replace(data_dir / STACK_FILE)


def read_stack(data_dir: Path) -> Stack | None:
    """Return the stack whose `up` is alive on this data folder, or None."""
    try:
        stack = Stack(**json.loads((data_dir / STACK_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return stack if is_alive(stack.up_pid) else None


def is_alive(pid: int) -> bool:
    """Whether a process of that id exists; one of another user counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_stack(data_dir: Path) -> None:
    (data_dir / STACK_FILE).unlink(missing_ok=True)
