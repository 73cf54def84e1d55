"""A worker that lies: a real process with a real socket that speaks the protocol and breaks one promise.

``install`` writes it as a program. What it does is read from a file when it starts; ``honest`` starts the real worker.
"""

import sys
from pathlib import Path

PROGRAM = '''#!{python} -IS
import json, os, signal, socket, struct, sys, time

with open({choice!r}) as file:
    behaviour = file.read()
if behaviour == "honest":
    os.execv({real!r}, sys.argv)

READY, OUTPUT, HOST_CALL, OUTCOME = 2, 5, 6, 8
USED = dict.fromkeys({figures!r}, 0)
sock = socket.socket(fileno=os.dup(0))


def frame(kind, payload):
    return struct.pack("<IB", len(payload) + 1, kind) + payload


def say(*frames):
    sock.sendall(b"".join(frames))


def ready(layers=()):
    jail = [dict(name=name, active=True, detail="on my honour") for name in layers]
    return frame(READY, json.dumps(dict(engine=dict(), jail=jail)).encode())


def outcome(outcome="succeeded", exit_code=0, used=(), **more):
    message = dict(outcome=outcome, exit_code=exit_code, resources=dict(USED, **dict(used)), **more)
    return frame(OUTCOME, json.dumps(message).encode())


def hear():
    """Take what came; the node sends load, run and input at once."""
    return sock.recv(1 << 20)


def die_by(signal_number, frame):
    """The monitor's part: what a killed worker still says, if it were believed."""
    if child:
        os.kill(child, signal.SIGKILL)
    if behaviour == "succeeds after it was killed":
        say(frame)


child = os.fork()
if child:
    signal.signal(signal.SIGTERM, lambda number, _: die_by(number, outcome()))
    if not behaviour.startswith("succeeds after"):
        sock.close()
        os.close(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)

{lies}

LIES[behaviour]()
'''

LIES = """
def stale(frame):
    def lie():
        hear()
        say(ready(), outcome())
        time.sleep(0.5)
        say(frame)
        time.sleep(60)
    return lie


def once(*frames):
    def lie():
        hear()
        say(*frames)
        time.sleep(60)
    return lie


def claim(**used):
    return once(ready(), outcome(used=used))


def host_call():
    used = json.dumps(USED).encode()
    return frame(HOST_CALL, struct.pack("<I", len(used)) + used + b"x")


def spin():
    hear()
    say(ready(), outcome())
    while True:
        pass


def flood_stderr():
    hear()
    written = 0
    try:
        while written < 64 << 20:
            written += os.write(2, b"x" * 65536)
    except OSError:
        pass
    text = str(written).encode()
    say(ready(), frame(OUTPUT, b"\\x01" + text), outcome(used=dict(stdout_bytes=len(text))))
    time.sleep(60)


def flood_output():
    hear()
    say(ready())
    while True:
        say(frame(OUTPUT, b"\\x01" + bytes(65536)))


def close_half_way():
    hear()
    say(ready(), outcome()[:-3])
    os.close(0)
    sock.close()
    time.sleep(60)


def sleep_unread(*frames):
    def lie():
        say(*frames)
        time.sleep(60)
    return lie


def leave():
    hear()
    say(ready())
    os._exit(0)


LIES = {
    "succeeds after it was killed": once(ready()),
    "claims memory": claim(peak_memory_bytes=1 << 40),
    "claims output": claim(stdout_bytes=1 << 40),
    "claims output that never came": claim(stdout_bytes=5),
    "claims files": claim(scratch_inodes=1),
    "claims time": claim(wall_us=3_600_000_000),
    "claims calls": claim(host_calls=2_000_000),
    "makes more calls than it may": once(ready(), *[host_call()] * 1001),
    "counts no calls": once(ready(), host_call(), outcome()),
    "names no limit": once(ready(), outcome("killed", None)),
    "names an unknown limit": once(ready(), outcome("killed", None, limit="patience")),
    "names a limit of a success": once(ready(), outcome(limit="wall_ms")),
    "names no trap": once(ready(), outcome("trapped", None)),
    "says two outcomes at once": once(ready(), outcome(), outcome("failed", 1)),
    "refuses an answer that came too late": once(
        ready(), outcome("killed", None, limit="host_call_ms"), outcome("rejected", None, reason="protocol")
    ),
    "refuses an answer after another limit": once(
        ready(), outcome("killed", None, limit="cpu_ms"), outcome("rejected", None, reason="protocol")
    ),
    "says an outcome for the next run": stale(outcome("failed", 1)),
    "says output for the next run": stale(frame(OUTPUT, b"\\x01leak")),
    "says half a frame for the next run": stale(b"\\xff"),
    "is ready twice": once(ready(), ready(), outcome()),
    "speaks before it is ready": once(frame(OUTPUT, b"\\x01x"), ready(), outcome()),
    "sends a frame of 4 GiB": once(struct.pack("<IB", 2**32 - 1, OUTPUT)),
    "sends an unknown frame": once(frame(77, b"")),
    "sends an unknown stream": once(ready(), frame(OUTPUT, b"\\x09x"), outcome()),
    "claims layers": once(ready(("seccomp", "no_new_privs")), outcome()),
    "claims an unknown layer": once(ready(("moat",)), outcome()),
    "claims no layer": once(ready(), outcome()),
    "floods stderr": flood_stderr,
    "floods output": flood_output,
    "reads nothing": sleep_unread(),
    "reads nothing and is ready": sleep_unread(ready()),
    "sends half an outcome and waits": once(ready(), outcome()[:-3]),
    "closes half way": close_half_way,
    "leaves without a word": leave,
    "works on after its outcome": spin,
}
"""

FIGURES = (
    "wall_us", "cpu_us", "peak_memory_bytes", "stdout_bytes", "stderr_bytes", "peak_open_files", "random_bytes",
    "table_elements", "log_lines", "scratch_bytes", "scratch_inodes", "fuel", "host_calls", "host_call_bytes",
    "host_call_us",
)  # fmt: skip
HONEST = "honest"


class Liar:
    """The program at ``path``; it does what ``behave`` said last before it starts."""

    def __init__(self, folder: Path, real_worker: str) -> None:
        self._choice = folder / "behaviour"
        self.path = folder / "liar"
        self.path.write_text(
            PROGRAM.format(
                python=sys.executable,
                choice=str(self._choice),
                real=real_worker,
                figures=FIGURES,
                lies=LIES,
            )
        )
        self.path.chmod(0o755)
        self.behave(HONEST)

    def behave(self, behaviour: str) -> None:
        self._choice.write_text(behaviour)
