"""Proto to domain and back, for nodes."""

from typing import Final

from agentfactory.v1 import nodes_pb2

from control_plane.executions.domain import AttemptRef
from control_plane.keys.ports import IssuedCertificate
from control_plane.log.domain import InclusionProof
from control_plane.log.node_proofs import ProofForNode
from control_plane.nodes.domain import Node, NodeDuty, NodeSession, NodeState
from control_plane.nodes.transfers import OutputHeader
from shared.digests import parse_digest
from shared.ids import EXECUTION, parse_id

_STATES: Final = {
    NodeState.ACTIVE: nodes_pb2.NODE_STATE_ACTIVE,
    NodeState.DRAINING: nodes_pb2.NODE_STATE_DRAINING,
    NodeState.QUARANTINED: nodes_pb2.NODE_STATE_QUARANTINED,
    NodeState.EVICTED: nodes_pb2.NODE_STATE_EVICTED,
}


_DUTIES: Final = {
    NodeDuty.RUN: nodes_pb2.NODE_DUTY_RUN,
    NodeDuty.COMPILE: nodes_pb2.NODE_DUTY_COMPILE,
}


def duty_from_proto(value: "nodes_pb2.NodeDuty.ValueType") -> NodeDuty:
    """Return what a node is for; unspecified: it runs agents."""
    return next((duty for duty, number in _DUTIES.items() if number == value), NodeDuty.RUN)


def node_to_proto(node: Node) -> nodes_pb2.Node:
    message = nodes_pb2.Node(
        node_id=node.node_id,
        state=_STATES[node.state],
        zone=node.zone,
        last_accepted=nodes_pb2.SpoolHead(sequence=node.last_accepted.sequence, hash=node.last_accepted.hash),
        receipt_key_id=node.receipt_key_id,
        duty=_DUTIES[node.duty],
    )
    message.enrolled_at.FromDatetime(node.enrolled_at)
    if node.last_seen_at is not None:
        message.last_seen_at.FromDatetime(node.last_seen_at)
    if node.session is not None:
        _add_session(message, node.session)
    return message


def _add_session(message: nodes_pb2.Node, session: NodeSession) -> None:
    message.connected = session.is_open
    message.boot_id = session.boot_id
    message.session_epoch = session.session_epoch
    message.slots = session.slots
    message.free_slots = session.free_slots
    message.engine.CopyFrom(
        nodes_pb2.EngineInfo(
            name=session.engine.name,
            version=session.engine.version,
            config_digest=session.engine.config_digest,
        )
    )
    message.sandbox_layers.extend(
        nodes_pb2.SandboxLayer(name=layer.name, active=layer.active, detail=layer.detail)
        for layer in session.sandbox_layers
    )
    if session.log.size or session.log.problem:
        message.log.CopyFrom(
            nodes_pb2.LogSeen(size=session.log.size, root=session.log.root, problem=session.log.problem)
        )


def log_proof_to_proto(proof: ProofForNode) -> nodes_pb2.GetLogProofResponse:
    return nodes_pb2.GetLogProofResponse(
        checkpoint=proof.checkpoint,
        consistency=proof.consistency,
        template=_place_to_proto(proof.template),
        policy=_place_to_proto(proof.policy),
    )


def _place_to_proto(proof: InclusionProof | None) -> nodes_pb2.LogPlace | None:
    if proof is None:
        return None
    return nodes_pb2.LogPlace(log_index=proof.entry.log_index, salt=proof.entry.salt, path=proof.path)


def certificate_to_proto(certificate: IssuedCertificate) -> nodes_pb2.RenewNodeCertificateResponse:
    message = nodes_pb2.RenewNodeCertificateResponse(certificate_chain_der=certificate.chain_der)
    message.certificate_expires_at.FromDatetime(certificate.expires_at)
    return message


def attempt_from_proto(message: nodes_pb2.AttemptRef) -> AttemptRef:
    """Return the attempt that a message names.

    Raises:
        InvalidInputError: Its execution id is none.
    """
    return AttemptRef(
        execution_id=parse_id(EXECUTION, message.execution_id),
        attempt_number=message.attempt_number,
        fencing_token=message.fencing_token,
    )


def output_header_from_proto(message: nodes_pb2.UploadOutputHeader) -> OutputHeader:
    """Return what an upload says about itself.

    Raises:
        InvalidInputError: Its commitment or execution id is none.
    """
    return OutputHeader(
        attempt=attempt_from_proto(message.attempt),
        commitment=parse_digest(message.commitment),
        salt=message.salt,
        size_bytes=message.size_bytes,
    )
