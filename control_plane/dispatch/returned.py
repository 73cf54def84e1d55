"""Signatures of orders that nodes bring back: the replica that sent them may have died before recording.

Makes no signature: what goes on record is what the node ran under, byte for byte, once it is verified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from control_plane.dispatch.options import DispatchOptions
from control_plane.dispatch.ports import Keysets, Observer, OrderLookup
from control_plane.dispatch.retry import retrying
from control_plane.executions.domain import AttemptResult, SignedBatchRecord, UnsignedOrder
from shared.clock import Clock
from shared.errors import AgentFactoryError
from shared.ids import KeyId, NodeId, OrderId
from shared.orders import verify_batch, verify_order_inclusion
from shared.signatures import PublicKey

logger = structlog.get_logger(__name__)

Returned = dict[OrderId, bytes]
"""By order that this replica did not send: the envelope that came with its receipt."""


class ReturnedSignatures:
    """Adds to receipts the signatures that are missing on record."""

    def __init__(
        self,
        *,
        orders: OrderLookup,
        keysets: Keysets,
        options: DispatchOptions,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._orders = orders
        self._keysets = keysets
        self._options = options
        self._clock = clock
        self._observer = observer

    async def add_to(
        self, results: Sequence[AttemptResult], returned: Mapping[OrderId, bytes], *, node_id: NodeId
    ) -> Sequence[AttemptResult]:
        """Return the results, those with a missing signature together with it.

        A signature is added when

        1. the stored order is this node's, and its batch has no signature on record;
        2. an order key of the keyset in force signed the envelope, for this installation (of an earlier epoch
           too: the order may have left before a restore);
        3. the order, in the bytes that were stored before it left, stands under that root at its place.

        Whatever fails, the receipt is recorded without it: a node need not send one at all, so refusing a
        wrong one would protect nothing. It is counted and logged.
        """
        if not returned:
            return results
        try:
            missing = await retrying(
                lambda: self._orders.unsigned_orders(node_id, tuple(returned)),
                what="find orders without a signature",
            )
            keys = await self._keysets.order_keys(self._clock.now()) if missing else {}
        except AgentFactoryError as error:
            logger.warning("returned signatures were not looked at", node_id=node_id, error=str(error))
            return results
        found = {
            order.order_id: record
            for order in missing
            if (record := self._verified(order, returned[order.order_id], keys, node_id)) is not None
        }
        return [replace(one, batch=found.get(one.order_id, one.batch)) for one in results]

    def _verified(
        self, order: UnsignedOrder, envelope: bytes, keys: Mapping[KeyId, PublicKey], node_id: NodeId
    ) -> SignedBatchRecord | None:
        try:
            root = verify_batch(
                envelope,
                keys=keys,
                installation=self._options.installation,
                minimum_epoch=1,
            )
            verify_order_inclusion(order.content, index=order.leaf_index, path=order.path, verified_root=root)
        except AgentFactoryError as error:
            self._observer.signature_failure("returned_order")
            logger.warning(
                "a node returned another signature than its order's",
                node_id=node_id,
                order_id=order.order_id,
                error=str(error),
            )
            return None
        return SignedBatchRecord(batch_id=order.batch_id, envelope=envelope, key_id=min(root.key_ids))
