"""A machine becomes a node over the wire, and the identity that it gets opens a session."""

from agentfactory.v1 import nodes_pb2

from control_plane.keys.ca import make_csr, new_private_key
from control_plane.nodes.domain import ENROLL_PROOF_DOMAIN
from shared.ids import NodeId
from tests.fixtures import dispatch as build
from tests.fixtures.keys import ed25519_key
from tests.integration.dispatch.stage import Replica, timedelta, work


async def test_an_enrolled_node_opens_a_session_and_runs_an_order(one: Replica):
    token = await one.service.create_token(
        tenant_id=build.TENANT, actor="operator", ttl=timedelta(0), zone="north"
    )
    key, csr = ed25519_key("receipts"), make_csr(new_private_key())
    somebody = one.client(build.node_id())
    answer = await somebody.stub.EnrollNode(
        nodes_pb2.EnrollNodeRequest(
            token=token.secret,
            csr_der=csr,
            receipt_public_key=key.public.spki_der,
            receipt_key_proof=key.sign(ENROLL_PROOF_DOMAIN + csr),
        ),
        timeout=10,
    )
    assert answer.installation == "test"
    assert len(answer.certificate_chain_der) == 2

    node = one.client(NodeId(answer.node_id))
    await node.connect()
    await node.beat()
    await one.until(lambda: one.dispatch.placer.queue_is_empty)
    [accepted] = await one.submit(work())
    await node.answer(await node.next_order())
    assert (await one.waiting.ended(accepted.execution_id)).state == "succeeded"

    renewed = await node.stub.RenewNodeCertificate(
        nodes_pb2.RenewNodeCertificateRequest(csr_der=make_csr(new_private_key())), timeout=10
    )
    assert len(renewed.certificate_chain_der) == 2
