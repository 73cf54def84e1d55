"""The node as a process: what it says when it cannot start, how it is enrolled, how it stops."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import grpc
import pytest
from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc

from control_plane.keys.ca import chain_pem, new_private_key, private_key_pem
from data_plane.__main__ import REFUSED, main
from data_plane.enrollment import enroll, make_csr
from data_plane.identity import is_enrolled, read_identity
from data_plane.receipts.spool import Spool
from shared import ids
from shared.errors import AlreadyExistsError, EnrollmentTokenInvalidError, KeyFormatError, VerificationError
from shared.key_files import read_private_key
from shared.outcomes import Outcome
from shared.paths import NodePaths
from shared.rpc.errors import wire_error
from shared.signatures import PublicKey
from shared.trust import encode_trust
from tests.fakes.control_plane import INSTALLATION
from tests.fixtures.keys import rsa_key


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def run(folder, *arguments: str) -> int:
    return main(["run", "--data-dir", str(folder), *arguments])


def test_node_without_trust_roots(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert "trust.json" in one_line(capsys)


async def test_node_that_is_not_enrolled(control_plane, tmp_path, capsys):
    control_plane.enroll_folder(tmp_path)
    (tmp_path / "node.json").unlink()

    assert await in_thread(run, tmp_path) == 2
    assert "enroll" in one_line(capsys)


async def test_node_whose_sandbox_lacks_a_demanded_layer(control_plane, tmp_path, capsys, monkeypatch):
    (tmp_path / "mountinfo").touch()
    monkeypatch.setattr("data_plane.sandbox.cgroup._MOUNTS", tmp_path / "mountinfo")
    control_plane.enroll_folder(tmp_path)
    monkeypatch.setenv("AF_NODE_SANDBOX_REQUIRE", '["seccomp", "cgroup"]')

    assert await in_thread(run, tmp_path) == 4
    line = one_line(capsys)
    assert "cgroup" in line
    assert "AF_NODE_SANDBOX_REQUIRE" in line
    assert "seccomp" not in line


async def test_key_that_others_can_read(control_plane, tmp_path, capsys):
    control_plane.enroll_folder(tmp_path)
    (tmp_path / "receipt.key").chmod(0o640)

    assert await in_thread(run, tmp_path) == 3
    assert "chmod 600" in one_line(capsys)


async def test_spool_that_another_process_holds(control_plane, tmp_path, capsys):
    control_plane.enroll_folder(tmp_path)
    spool = Spool.open(tmp_path / "spool", bound_bytes=1 << 30)

    assert await in_thread(run, tmp_path) == 4
    assert "SPOOL_LOCKED" in one_line(capsys)
    await spool.close()


def test_unknown_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AF_NODE_SLOT", "2")

    assert run(tmp_path) == 2
    assert "did you mean AF_NODE_SLOTS" in one_line(capsys)


def test_setting_out_of_range(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AF_NODE_SLOTS", "0")

    assert run(tmp_path) == 2
    assert "AF_NODE_SLOTS" in one_line(capsys)


def environment(control_plane, folder, **variables: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AF_")},
        "AF_NODE_DATA_DIR": str(folder),
        "AF_NODE_CONTROL_PLANES": json.dumps([f"localhost:{control_plane.port}"]),
        "AF_NODE_ADMIN_PORT": "0",
        "AF_NODE_SLOTS": "2",
        **variables,
    }


def start(control_plane, folder, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "data_plane"],
        env=environment(control_plane, folder, **variables),
        stderr=subprocess.PIPE,
    )


async def in_thread(function, *arguments):
    return await asyncio.to_thread(function, *arguments)


async def test_admin_port_that_is_taken(control_plane, tmp_path):
    control_plane.enroll_folder(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = start(control_plane, tmp_path, AF_NODE_ADMIN_PORT=port)
        _, err = await in_thread(lambda: process.communicate(timeout=60))

    assert process.returncode == 4
    assert b"PORT_IN_USE" in err.splitlines()[-1]
    assert b"Traceback" not in err


async def test_sigterm_lets_the_guest_finish_and_ends_with_0(control_plane, tmp_path, actor):
    control_plane.enroll_folder(tmp_path)
    process = start(control_plane, tmp_path)
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 700")
    await control_plane.send(session, job)
    await control_plane.wait_for(lambda: session.started)

    process.send_signal(signal.SIGTERM)
    await in_thread(lambda: process.communicate(timeout=60))

    assert process.returncode == 0
    assert (await control_plane.receipt_of(job)).predicate.outcome is Outcome.SUCCEEDED


async def test_kill_9_while_a_guest_runs_gives_a_new_boot_and_a_whole_chain(control_plane, tmp_path, actor):
    node_id = control_plane.enroll_folder(tmp_path)
    control_plane.acknowledges = False
    process = start(control_plane, tmp_path)
    session = await control_plane.session()
    done = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, done)
    first = await control_plane.receipt_of(done)
    running = control_plane.job(session, actor, b"sleep 60000")
    await control_plane.send(session, running)
    await control_plane.wait_for(lambda: session.started)

    process.kill()
    await in_thread(process.communicate)
    control_plane.receipts.clear()
    control_plane.acknowledges = True
    again = start(control_plane, tmp_path)
    try:
        second = await control_plane.session(2)
        retried = control_plane.job(
            second,
            actor,
            b"exit 0",
            execution_id=running.order.execution_id,
            fencing_token=2,
            attempt_number=2,
        )
        await control_plane.send(second, retried)
        receipt = await control_plane.receipt_of(retried)
    finally:
        again.terminate()
        await in_thread(lambda: again.communicate(timeout=60))

    assert second.hello.boot_id != session.hello.boot_id
    assert control_plane.receipts[node_id, 1].envelope == first.envelope
    assert (receipt.predicate.sequence, receipt.predicate.previous) == (2, first.hash)


class Enrollment(nodes_pb2_grpc.NodeServiceServicer):
    """The anonymous port of a control plane: one token, used once."""

    def __init__(self, control_plane) -> None:
        self.control_plane = control_plane
        self.token = "t" * 32
        self.installation = INSTALLATION

    async def EnrollNode(self, request, context):  # noqa: N802 - the contract names it
        if request.token != self.token:
            error = wire_error(EnrollmentTokenInvalidError("the enrollment token is unknown"))
            await context.abort(error.code, error.message, error.trailing_metadata)
        PublicKey.from_spki_der(request.receipt_public_key).verify(
            request.receipt_key_proof, b"agentfactory-enroll-v1" + request.csr_der
        )
        self.token = ""
        node_id = ids.new_id(ids.NODE, self.control_plane.clock, self.control_plane.random)
        leaf = await self.control_plane.certify(request.csr_der, node_id)
        return nodes_pb2.EnrollNodeResponse(
            node_id=node_id, installation=self.installation, certificate_chain_der=leaf.chain_der
        )


@pytest.fixture
async def enrollment(control_plane):
    servicer, key = Enrollment(control_plane), new_private_key()
    leaf = control_plane.authority.sign_leaf(
        key.public_key(),
        spiffe_id=f"spiffe://{INSTALLATION}/service/control-plane",
        ttl=timedelta(days=1),
        server_names=("localhost",),
    )
    server = grpc.aio.server()
    nodes_pb2_grpc.add_NodeServiceServicer_to_server(servicer, server)
    servicer.port = server.add_secure_port(
        "localhost:0", grpc.ssl_server_credentials([(private_key_pem(key), chain_pem(leaf.chain_der))])
    )
    await server.start()
    yield servicer
    await server.stop(None)


async def give_identity(control_plane, enrollment, folder, token=None):
    return await enroll(
        paths=NodePaths(data_dir=folder),
        trust=control_plane.trust,
        target=f"localhost:{enrollment.port}",
        token=token or enrollment.token,
    )


async def test_enrolled_node_proves_its_keys_and_holds_its_identity(control_plane, enrollment, tmp_path):
    node_id = await give_identity(control_plane, enrollment, tmp_path)

    identity = read_identity(NodePaths(data_dir=tmp_path))
    assert (identity.node_id, identity.installation) == (node_id, INSTALLATION)
    assert (tmp_path / "receipt.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600


async def test_wrong_token_leaves_no_identity_and_the_right_one_still_works(
    control_plane, enrollment, tmp_path
):
    with pytest.raises(EnrollmentTokenInvalidError):
        await give_identity(control_plane, enrollment, tmp_path, token="x" * 32)
    assert not (tmp_path / "node.json").exists()

    assert await give_identity(control_plane, enrollment, tmp_path)


async def test_identity_is_never_replaced(control_plane, enrollment, tmp_path):
    await give_identity(control_plane, enrollment, tmp_path)

    with pytest.raises(AlreadyExistsError):
        await give_identity(control_plane, enrollment, tmp_path, token="y" * 32)


async def test_answer_for_another_installation_is_refused(control_plane, enrollment, tmp_path):
    enrollment.installation = "elsewhere"

    with pytest.raises(VerificationError):
        await give_identity(control_plane, enrollment, tmp_path)
    assert not (tmp_path / "node.json").exists()


@pytest.mark.parametrize(
    "forgery", [{"forged_name": "somebody"}, {"forged_csr": make_csr(new_private_key())}], ids=["name", "key"]
)
async def test_certificate_of_another_node_or_key_makes_no_identity(
    control_plane, enrollment, tmp_path, forgery
):
    for name, value in forgery.items():
        setattr(control_plane, name, value)

    with pytest.raises(KeyFormatError):
        await give_identity(control_plane, enrollment, tmp_path)
    assert not (tmp_path / "node.crt").exists()
    assert not (tmp_path / "node.json").exists()


async def test_other_trust_roots_than_the_pinned_ones_are_refused_before_the_token_is_used(
    control_plane, enrollment, tmp_path
):
    other = replace(control_plane.trust, root_key=rsa_key("other root").public)
    (tmp_path / "trust.json").write_bytes(encode_trust(other))
    token = enrollment.token

    with pytest.raises(AlreadyExistsError, match="other trust roots"):
        await give_identity(control_plane, enrollment, tmp_path)
    assert enrollment.token == token


async def test_enrolling_from_the_command_line_reads_the_token_from_standard_input(
    control_plane, enrollment, tmp_path
):
    (tmp_path / "trust.json").write_bytes(encode_trust(control_plane.trust))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "data_plane", "enroll", "--token", "-"),
            *("--control-plane", f"localhost:{enrollment.port}", "--data-dir", str(tmp_path)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    out, _ = await in_thread(lambda: process.communicate(enrollment.token + "\n", timeout=60))

    assert process.returncode == 0
    assert out.strip() == read_identity(NodePaths(data_dir=tmp_path)).node_id


async def test_a_compiler_has_its_key_before_it_has_an_identity(control_plane, enrollment, tmp_path):
    """Whoever is killed between the two has a key still when it enrolls again: without one it would never start."""
    (tmp_path / "trust.json").write_bytes(encode_trust(control_plane.trust))

    async def given(token: str) -> subprocess.CompletedProcess[str]:
        arguments = ("--control-plane", f"localhost:{enrollment.port}", "--data-dir", str(tmp_path))
        command = [sys.executable, "-m", "data_plane.compiler", "enroll", "--token", "-", *arguments]
        return await in_thread(
            lambda: subprocess.run(
                command, check=False, input=f"{token}\n", capture_output=True, text=True, timeout=60
            )
        )

    refused = await given("of-nobody")
    assert refused.returncode == REFUSED, refused.stderr
    made = (tmp_path / "compiler.pub").read_text()
    assert not is_enrolled(NodePaths(data_dir=tmp_path))

    enrolled = await given(enrollment.token)
    assert enrolled.returncode == 0, enrolled.stderr
    assert enrolled.stdout.strip() == read_identity(NodePaths(data_dir=tmp_path)).node_id
    assert (tmp_path / "compiler.pub").read_text() == made
    assert read_private_key(tmp_path / "compiler.key").public.to_pem() == made.encode()
