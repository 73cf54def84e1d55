"""Reads the values that a run wrote out of its receipt's message. Pure."""

from agentfactory.v1 import nodes_pb2

from control_plane.kv.domain import MAX_WRITES, KvWrite
from shared.digests import Digest, same_digest, sha256_digest
from shared.errors import ReceiptInvalidError


def kv_writes_of(message: nodes_pb2.KvWrites, digest: Digest | None) -> tuple[KvWrite, ...]:
    """Return what a run wrote, if it is exactly what its receipt says.

    1. There are writes if, and only if, the receipt names their digest.
    2. Their deterministic encoding has that digest.
    3. Each key is there once, in the order of the keys, with a value or a deletion; it holds no NUL, which no
       text of Postgres can.

    Raises:
        ReceiptInvalidError: One of them does not hold.
    """
    if digest is None:
        if message.writes:
            raise ReceiptInvalidError("check 4: values come without a digest in the receipt")
        return ()
    if not 1 <= len(message.writes) <= MAX_WRITES:
        raise ReceiptInvalidError(f"check 4: {len(message.writes)} values come where the receipt names some")
    if not same_digest(sha256_digest(message.SerializeToString(deterministic=True)), digest):
        raise ReceiptInvalidError("check 4: values are not what the receipt says")
    keys = [one.key for one in message.writes]
    if keys != sorted(set(keys)):
        raise ReceiptInvalidError("check 4: keys of values are not in order, or come twice")
    if any(one.WhichOneof("change") is None for one in message.writes):
        raise ReceiptInvalidError("check 4: a key comes with neither value nor deletion")
    if any("\0" in key for key in keys):
        raise ReceiptInvalidError("check 5: a key holds a nul")
    return tuple(KvWrite(key=one.key, value=None if one.deleted else one.value) for one in message.writes)
