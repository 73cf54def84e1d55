"""A transparency log in memory, that a test makes lie: real hashes, real proofs, real signatures."""

from collections.abc import Sequence

from agentfactory.v1 import nodes_pb2

from shared.checkpoints import Checkpoint, log_origin, sign_checkpoint
from shared.log_leaf import SALT_BYTES, Fact
from shared.merkle import consistency_proof, inclusion_path, leaf_hash, root_hash
from shared.signatures import PrivateKey
from tests.fixtures.keys import ed25519_key, signer

SALT = bytes(range(SALT_BYTES))


class ScriptedLog:
    """Everything that is asked for is in it, but for what is kept back."""

    def __init__(self, installation: str, *, key: PrivateKey | None = None) -> None:
        self.installation = installation
        self.key = key or ed25519_key("log")
        self.leaves: list[bytes] = []
        self.places: dict[str, int] = {}
        self.kept_back: set[str] = set()
        """Kinds of facts that are not in the log."""
        self.asked = 0
        """How often for an order; nodes ask for the checkpoint alone besides."""

    def copy(self) -> "ScriptedLog":
        """Return another log that begins as this one."""
        other = ScriptedLog(self.installation, key=self.key)
        other.leaves, other.places = list(self.leaves), dict(self.places)
        return other

    def append(self, text: str) -> None:
        """Append a leaf about something else."""
        self.leaves.append(leaf_hash(text.encode()))

    async def checkpoint(self, epoch: int) -> bytes:
        checkpoint = Checkpoint(
            origin=log_origin(self.installation, epoch), size=len(self.leaves), root=root_hash(self.leaves)
        )
        return (await sign_checkpoint(checkpoint, signer(self.key), self.key.public)).note

    async def answer(
        self, known_size: int, facts: Sequence[Fact], *, epoch: int
    ) -> nodes_pb2.GetLogProofResponse:
        """Return what an honest log would, of what this one says is in it."""
        self.asked += bool(facts)
        for fact in facts:
            if fact.kind not in self.kept_back and fact.subject not in self.places:
                self.places[fact.subject] = len(self.leaves)
                self.leaves.append(leaf_hash(fact.commitment(SALT)))
        answer = nodes_pb2.GetLogProofResponse(checkpoint=await self.checkpoint(epoch))
        if 0 < known_size < len(self.leaves):
            answer.consistency.extend(consistency_proof(self.leaves, known_size))
        for name, fact in zip(("template", "policy"), facts, strict=False):
            if fact.subject in self.places:
                place = self.place(fact)
                getattr(answer, name).CopyFrom(place)
        return answer

    def place(self, fact: Fact) -> nodes_pb2.LogPlace:
        index = self.places[fact.subject]
        return nodes_pb2.LogPlace(log_index=index, salt=SALT, path=inclusion_path(self.leaves, index))

    def keep_back(self, *kinds: str) -> None:
        self.kept_back.update(kinds)
