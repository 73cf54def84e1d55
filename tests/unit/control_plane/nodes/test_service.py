"""Tokens, enrollment, certificates, and what operators do to a node."""

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from control_plane.keys.ca import BuiltinCertificateAuthority, make_csr, new_private_key
from control_plane.nodes.domain import ENROLL_PROOF_DOMAIN, Node, NodeState, hash_token
from control_plane.nodes.service import EnrollmentRequest, NodeService
from shared.errors import (
    EnrollmentTokenInvalidError,
    InvalidInputError,
    KeyFormatError,
    NodeEvictedError,
    NodeQuarantinedError,
    NotFoundError,
    SignatureInvalidError,
    UnauthenticatedError,
)
from shared.ids import InstallationId, NodeId, TenantId
from shared.signatures import PrivateKey
from tests.fakes.answers import OpenGate
from tests.fakes.clock import FakeClock, FakeRandom
from tests.fakes.nodes import FakeNodeStore
from tests.fixtures import dispatch as build
from tests.fixtures.keys import ed25519_key, rsa_key
from tests.fixtures.scripted_leases import ScriptedLeases

OTHER = TenantId("other")
MILLISECOND = timedelta(milliseconds=1)


@dataclass
class Sessions:
    """The sessions of this replica: notes whose node changed."""

    changed: list[NodeId] = field(default_factory=list)

    async def node_changed(self, node_id: NodeId) -> None:
        self.changed.append(node_id)


@dataclass
class Office:
    """The service on fakes."""

    service: NodeService
    nodes: FakeNodeStore
    sessions: Sessions
    leases: ScriptedLeases
    clock: FakeClock

    async def token(self, **changes: object) -> str:
        values = {"tenant_id": build.TENANT, "actor": "operator", "ttl": timedelta(0), "zone": "north"}
        return (await self.service.create_token(**{**values, **changes})).secret

    async def enroll(self, token: str | None = None, **changes: object) -> Node:
        request = application(token or await self.token(), **changes)
        return (await self.service.enroll(request)).node

    @property
    def last(self) -> tuple[str, str]:
        return (self.nodes.audit[-1].action, self.nodes.audit[-1].result)


def application(token: str, *, key: PrivateKey | None = None, csr: bytes | None = None, **changes: bytes):
    """What a machine sends to become a node."""
    key = key or ed25519_key("receipts")
    csr = make_csr(new_private_key()) if csr is None else csr
    values = {
        "token": token,
        "csr_der": csr,
        "receipt_public_key": key.public.spki_der,
        "receipt_key_proof": key.sign(ENROLL_PROOF_DOMAIN + csr),
    }
    return EnrollmentRequest(**{**values, **changes})


@pytest.fixture
def office() -> Office:
    clock = FakeClock()
    nodes, sessions, leases = FakeNodeStore(clock), Sessions(), ScriptedLeases()
    service = NodeService(
        nodes=nodes,
        leases=leases,
        authority=BuiltinCertificateAuthority.create(installation="test", clock=clock),
        sessions=sessions,
        installation=InstallationId("test"),
        default_tenant=build.TENANT,
        refusals=nodes,
        gate=OpenGate(),
        clock=clock,
        random=FakeRandom("office"),
    )
    return Office(service=service, nodes=nodes, sessions=sessions, leases=leases, clock=clock)


# --- tokens


async def test_a_token_is_shown_once_and_kept_as_a_hash(office: Office):
    made = await office.service.create_token(
        tenant_id=build.TENANT, actor="operator", ttl=timedelta(0), zone=""
    )
    stored = await office.nodes.find_token(hash_token(made.secret))
    assert stored is not None
    assert made.secret not in repr(stored) + repr(made) + repr(office.nodes.audit)
    assert made.expires_at == office.clock.now() + timedelta(hours=1)
    assert office.last == ("node.token_created", "ok")


@pytest.mark.parametrize("ttl", [timedelta(days=7) + MILLISECOND, -MILLISECOND])
async def test_a_token_lives_within_bounds(office: Office, ttl: timedelta):
    with pytest.raises(InvalidInputError, match="ttl"):
        await office.token(ttl=ttl)


# --- enrollment


async def test_a_machine_with_a_token_becomes_a_node(office: Office):
    enrolled = await office.service.enroll(application(await office.token()))
    assert enrolled.certificate.spiffe_id == f"spiffe://test/node/{enrolled.node.node_id}"
    assert enrolled.certificate.expires_at == office.clock.now() + timedelta(hours=24)
    assert (await office.nodes.find(enrolled.node.node_id)) == enrolled.node
    assert enrolled.node.zone == "north"
    assert office.last == ("node.enrolled", "ok")


@pytest.mark.parametrize(
    ("left", "good"), [(MILLISECOND, True), (timedelta(0), False), (-MILLISECOND, False)]
)
async def test_a_token_ends_at_its_expiry(office: Office, left: timedelta, *, good: bool):
    token = await office.token(ttl=timedelta(hours=2))
    office.clock.advance(timedelta(hours=2) - left)
    if good:
        assert (await office.enroll(token)).state is NodeState.ACTIVE
    else:
        with pytest.raises(EnrollmentTokenInvalidError):
            await office.enroll(token)


async def test_a_token_that_was_used_enrolls_nobody_on_record(office: Office):
    token = await office.token()
    await office.enroll(token)
    with pytest.raises(EnrollmentTokenInvalidError):
        await office.enroll(token)
    assert office.last == ("node.enroll_refused", "ENROLLMENT_TOKEN_INVALID")


async def test_a_guessed_token_enrolls_nobody_on_record(office: Office):
    with pytest.raises(EnrollmentTokenInvalidError):
        await office.enroll("aft_guessed-guessed-guessed")
    assert office.last == ("node.enroll_refused", "ENROLLMENT_TOKEN_INVALID")
    assert "guessed" not in repr(office.nodes.audit)


async def test_somebody_elses_receipt_key_cannot_be_enrolled(office: Office):
    """The attacker has no private half: the proof is over another request, or by another key."""
    token = await office.token()
    replayed = ed25519_key("receipts").sign(ENROLL_PROOF_DOMAIN + b"another request")
    with pytest.raises(SignatureInvalidError):
        await office.enroll(token, receipt_key_proof=replayed)
    other = ed25519_key("other")
    with pytest.raises(SignatureInvalidError):
        await office.enroll(token, receipt_public_key=other.public.spki_der)
    assert office.last == ("node.enroll_refused", "SIGNATURE_INVALID")
    assert (await office.enroll(token)).state is NodeState.ACTIVE, "a refusal uses no token"


async def test_a_signature_made_for_something_else_proves_no_possession(office: Office):
    csr = make_csr(new_private_key())
    bare = ed25519_key("receipts").sign(csr)
    with pytest.raises(SignatureInvalidError):
        await office.enroll(None, csr=csr, receipt_key_proof=bare)


async def test_a_receipt_key_is_ed25519(office: Office):
    with pytest.raises(KeyFormatError, match="Ed25519"):
        await office.enroll(None, key=rsa_key("receipts"))


async def test_a_certificate_request_that_is_not_one_is_refused(office: Office):
    with pytest.raises(InvalidInputError, match="certificate request"):
        await office.enroll(None, csr=b"not a request")
    assert office.last == ("node.enroll_refused", "INVALID_INPUT")


# --- certificates


async def test_a_node_renews_its_certificate(office: Office):
    node = await office.enroll()
    office.clock.advance(timedelta(hours=16))
    renewed = await office.service.renew_certificate(node.node_id, make_csr(new_private_key()))
    assert renewed.expires_at == office.clock.now() + timedelta(hours=24)
    assert renewed.spiffe_id == f"spiffe://test/node/{node.node_id}"
    stored = await office.nodes.find(node.node_id)
    assert stored is not None
    assert stored.certificate_serial == renewed.serial
    assert office.last == ("node.certificate_renewed", "ok")


async def test_an_evicted_node_renews_nothing(office: Office):
    node = await office.enroll()
    await office.service.evict(build.TENANT, node.node_id, actor="operator", reason="stolen")
    with pytest.raises(NodeEvictedError):
        await office.service.renew_certificate(node.node_id, make_csr(new_private_key()))
    assert office.last == ("node.renew_refused", "NODE_EVICTED")


async def test_an_unknown_node_renews_nothing(office: Office):
    with pytest.raises(UnauthenticatedError):
        await office.service.renew_certificate(build.node_id(), make_csr(new_private_key()))


# --- operators


async def test_draining_is_recorded_once_and_reaches_the_session(office: Office):
    node = await office.enroll()
    drained = await office.service.drain(build.TENANT, node.node_id, actor="operator")
    again = await office.service.drain(build.TENANT, node.node_id, actor="operator")
    assert (drained.state, again.state) == (NodeState.DRAINING, NodeState.DRAINING)
    assert [entry.action for entry in office.nodes.audit].count("node.drained") == 1
    assert office.sessions.changed == [node.node_id]
    assert dict(office.nodes.audit[-1].details) == {"from": "active", "to": "draining"}


async def test_evicting_is_recorded_once_and_loses_the_attempts(office: Office):
    node = await office.enroll()
    for _ in range(2):
        evicted = await office.service.evict(build.TENANT, node.node_id, actor="operator", reason="stolen")
    assert evicted.state is NodeState.EVICTED
    assert [entry.action for entry in office.nodes.audit].count("node.evicted") == 1
    with pytest.raises(NodeEvictedError):
        await office.service.drain(build.TENANT, node.node_id, actor="operator")


async def test_a_quarantined_node_cannot_be_drained_back_to_trust(office: Office):
    node = await office.enroll()
    office.nodes._nodes[node.node_id] = node.quarantine()
    with pytest.raises(NodeQuarantinedError):
        await office.service.drain(build.TENANT, node.node_id, actor="operator")
    assert node.evict().quarantine().state is NodeState.EVICTED


@pytest.mark.parametrize("verb", ["drain", "evict", "get"])
async def test_another_tenants_node_does_not_exist(office: Office, verb: str):
    node = await office.enroll()
    more = {"drain": {"actor": "me"}, "evict": {"actor": "me", "reason": "r"}, "get": {}}[verb]
    with pytest.raises(NotFoundError):
        await getattr(office.service, verb)(OTHER, node.node_id, **more)


async def test_pages_of_nodes(office: Office):
    made = {(await office.enroll()).node_id for _ in range(3)}
    first, token = await office.service.list(build.TENANT, page_size=2, page_token="")
    second, end = await office.service.list(build.TENANT, page_size=2, page_token=token)
    assert {node.node_id for node in (*first, *second)} == made
    assert (len(first), len(second), end) == (2, 1, "")
    with pytest.raises(InvalidInputError):
        await office.service.list(build.TENANT, page_size=2, page_token="'; DROP TABLE nodes")
