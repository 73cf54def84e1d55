"""Writes tests/vectors/receipt from fixed keys and times: ``python -m tests.tools.receipt_vectors``.

For whoever verifies receipt files in another language (docs/specs/receipt.md). A test holds what is committed
to what this makes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from shared.canonical import canonical_json
from shared.checkpoints import log_origin
from shared.decisions import DecisionResult
from shared.digests import sha256_digest
from shared.keyset import KeyPurpose
from shared.limits import Limits
from shared.manifest import encode_manifest
from shared.receipt_file import FiledDecision, ReceiptFile, encode_receipt_file
from shared.receipts import AttemptIdentity
from shared.verification.trust import ReceiptTrust, encode_receipt_trust
from tests.builders.receipt_files import (
    LOG_KEY,
    NODE_KEY,
    WITNESSES,
    Scene,
    calling,
    rsa,
    succeeded,
    trapped,
    trust,
)
from tests.fakes.clock import START
from tests.fixtures.keys import ed25519_key

FOLDER: Final = Path(__file__).resolve().parents[1] / "vectors" / "receipt"
MALLORY: Final = ed25519_key("mallory")

Stage = Callable[[Scene], None]
Change = Callable[[ReceiptFile], ReceiptFile]

TRUSTS: Final[dict[str, ReceiptTrust]] = {
    "trust": trust(),
    "trust-quorum-2": trust(quorum=2),
    "trust-root-only": trust(logs=(), witnesses=()),
    "trust-newer-keyset": trust(minimum_keyset_version=4),
    "trust-other-installation": trust(installation="elsewhere"),
    "trust-other-root": trust(root_keys=(MALLORY.public,)),
    "trust-other-log": trust(
        logs=(replace(trust().logs[0], name=log_origin("elsewhere", 1)),),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One file, whom to trust, and what comes of it."""

    name: str
    data: bytes
    trust: str = "trust"
    fails: str = ""
    """The check that fails; empty: every one holds."""


def vectors() -> list[Vector]:
    """Return every vector."""
    return [*_good(), *_bad_bytes(), *_bad_trust(), *_bad_signers(), *_bad_contents(), *_bad_log()]


def files() -> dict[str, bytes]:
    """Return the folder's content, keys aside: one file for each vector and trust, and their list."""
    made = vectors()
    listed = [
        {"name": one.name, "file": f"{one.name}.json", "trust": f"{one.trust}.json", "fails": one.fails}
        for one in made
    ]
    return {
        **{f"{one.name}.json": one.data for one in made},
        **{f"{name}.json": encode_receipt_trust(one) for name, one in TRUSTS.items()},
        "vectors.json": json.dumps({"vectors": listed}, indent=1).encode() + b"\n",
    }


def staged(make: Callable[[], Scene], change: Stage) -> bytes:
    """Return the file of a scene that was changed before it was signed."""
    scene = make()
    change(scene)
    return encode_receipt_file(scene.file())


def altered(make: Callable[[], Scene], change: Change) -> bytes:
    """Return a file that was changed after it was signed."""
    return encode_receipt_file(change(make().file()))


def _good() -> list[Vector]:
    whole = {"succeeded": succeeded, "trapped": trapped, "calling": calling}
    made = [Vector(name=name, data=encode_receipt_file(make().file())) for name, make in whole.items()]
    return [
        *made,
        Vector(name="cosigned", data=made[2].data, trust="trust-quorum-2"),
        Vector(name="log-key-of-the-keyset", data=made[0].data, trust="trust-root-only"),
        Vector(
            name="order-key-revoked-later",
            data=staged(succeeded, lambda scene: _revoke(scene, position=10, hours=1)),
        ),
    ]


def _bad_bytes() -> list[Vector]:
    data = encode_receipt_file(succeeded().file())
    said = json.loads(data)
    return [
        Vector(name="file-cut-off", data=data[:-1], fails="file"),
        Vector(name="file-half", data=data[: len(data) // 2], fails="file"),
        Vector(name="file-with-a-space", data=data.replace(b'":"', b'": "', 1), fails="file"),
        Vector(
            name="file-of-version-2",
            data=canonical_json({**said, "type": "agentfactory.receipt-file.v2"}) + b"\n",
            fails="file",
        ),
        Vector(
            name="file-unknown-field", data=canonical_json({**said, "comment": "x"}) + b"\n", fails="file"
        ),
        Vector(name="file-key-twice", data=data.replace(b"{", b'{"type":"x",', 1), fails="file"),
    ]


def _bad_trust() -> list[Vector]:
    data = encode_receipt_file(succeeded().file())
    fails = {
        "newer-keyset": "keyset",
        "other-installation": "keyset",
        "other-root": "keyset",
        "other-log": "checkpoint",
        "quorum-2": "witnesses",
    }
    return [
        Vector(name=f"against-{name}", data=data, trust=f"trust-{name}", fails=check)
        for name, check in fails.items()
    ]


def _bad_signers() -> list[Vector]:
    def set_to(**keys: object) -> Stage:
        def stage(scene: Scene) -> None:
            for name, key in keys.items():
                setattr(scene, name, key)

        return stage

    def unlist(scene: Scene) -> None:
        kept = [one for one in scene.keyset.entries if one.purpose is not KeyPurpose.ORDER]
        scene.keyset = replace(scene.keyset, entries=tuple(kept))

    def ended(scene: Scene) -> None:
        first, *others = scene.keyset.entries
        scene.keyset = replace(scene.keyset, entries=(replace(first, not_after=START), *others))

    stages: dict[str, tuple[str, Stage]] = {
        "keyset-of-another-root": ("keyset", set_to(root_key=MALLORY)),
        "order-key-foreign": ("batch", set_to(order_key=rsa("foreign"))),
        "order-key-not-listed": ("batch", unlist),
        "order-key-ended": ("batch", ended),
        "order-key-revoked-before": ("batch", lambda scene: _revoke(scene, position=None, hours=0)),
        "publisher-foreign": ("templates", set_to(publisher=rsa("foreign"))),
        "publisher-is-the-order-key": ("templates", set_to(publisher=rsa("order"))),
        "log-key-foreign": ("checkpoint", set_to(log_key=MALLORY)),
        "log-of-another-installation": ("checkpoint", set_to(origin=log_origin("elsewhere", 1))),
        # The operator makes a node's key of its own, and receipts of what never ran.
        "node-key-never-admitted": ("enrollment", set_to(node_key=MALLORY)),
        "node-key-is-not-ed25519": ("receipt", set_to(node_key=rsa("foreign"))),
        # A stolen order key dates back what it signs, but not its place in the log.
        "order-key-revoked-in-the-log": ("revocations", lambda scene: _revoke(scene, position=9, hours=1)),
        "witness-forged": (
            "witnesses",
            set_to(witnesses={"one.example": WITNESSES["one.example"], "two.example": MALLORY}),
        ),
    }
    return [
        Vector(name=name, data=staged(succeeded, stage), fails=fails)
        for name, (fails, stage) in stages.items()
    ]


def _bad_contents() -> list[Vector]:
    stages: dict[str, tuple[str, Callable[[], Scene], Stage]] = {
        "template-wider-than-its-parent": ("templates", calling, _wider),
        "template-without-its-parent": ("templates", calling, _without_parents),
        "template-not-the-ordered-one": ("templates", succeeded, _other_template),
        "decision-about-another-caller": ("decision", succeeded, _other_caller),
        "decision-granted-less": ("decision", succeeded, _more_than_granted),
        "decision-denied": ("decision", succeeded, _denied),
        "decision-with-a-boolean-for-a-number": ("decision", succeeded, _number_as_boolean),
        "receipt-of-another-order": ("answer", succeeded, _of_another_order),
        "receipt-of-another-module": ("answer", succeeded, _of_another_module),
        "decision-roles-made-up": ("submission", succeeded, _roles_made_up),
        "decision-reason-made-up": ("submission", succeeded, _reason_made_up),
    }
    return [
        Vector(name=name, data=staged(make, stage), fails=fails)
        for name, (fails, make, stage) in stages.items()
    ]


def _wider(scene: Scene) -> None:
    scene.parents = (replace(scene.parents[0], capabilities=type(scene.parents[0].capabilities)()),)
    line = scene.manifest.extends[0]
    line = replace(line, digest=sha256_digest(encode_manifest(scene.parents[0])))
    scene.manifest = replace(scene.manifest, extends=(line,))
    digest = sha256_digest(encode_manifest(scene.manifest))
    scene.order = replace(scene.order, template_digest=digest)


def _without_parents(scene: Scene) -> None:
    scene.parents = ()


def _other_template(scene: Scene) -> None:
    scene.manifest = replace(scene.manifest, version="1.2.1")


def _other_caller(scene: Scene) -> None:
    scene.input["subject"]["identity"] = "spiffe://local/caller/other"


def _more_than_granted(scene: Scene) -> None:
    scene.result = DecisionResult(allowed=True, reason="ALLOWED", limits=Limits(wall_ms=1))


def _denied(scene: Scene) -> None:
    scene.result = DecisionResult(
        allowed=False, reason="QUOTA", reasons=("QUOTA",), limits=scene.order.limits
    )


def _number_as_boolean(scene: Scene) -> None:
    scene.order = replace(scene.order, input_bytes=1)
    scene.input["input_bytes"] = True


def _of_another_order(scene: Scene) -> None:
    scene.receipt = replace(scene.receipt, order_digest=sha256_digest(b"another order"))
    order = scene.order
    attempt = AttemptIdentity(
        order_id=order.id,
        execution_id=order.execution_id,
        attempt_number=order.attempt_number,
        fencing_token=order.fencing_token,
    )
    scene.receipt = replace(scene.receipt, attempt=attempt)


def _of_another_module(scene: Scene) -> None:
    scene.receipt = replace(scene.receipt, module_digest=sha256_digest(b"another module"))


def _roles_made_up(scene: Scene) -> None:
    true = dict(scene.input, subject=dict(scene.input["subject"]))
    scene.input["subject"]["roles"] = ["admin", "caller"]
    scene.logged = lambda filed: replace(filed, input=canonical_json(true))


def _reason_made_up(scene: Scene) -> None:
    scene.result = replace(scene.result, reason="APPROVED_BY_THE_BOARD")
    true = succeeded().result

    def logged(filed: FiledDecision) -> FiledDecision:
        return replace(filed, result=true)

    scene.logged = logged


def _bad_log() -> list[Vector]:
    other = trapped().file()

    def with_log(**changes: object) -> Change:
        def change(file: ReceiptFile) -> ReceiptFile:
            if file.log is None:
                raise ValueError("a file without log")
            return replace(file, log=replace(file.log, **changes))  # type: ignore[arg-type]

        return change

    def other_leaf(file: ReceiptFile) -> ReceiptFile:
        if file.log is None:
            raise ValueError("a file without log")
        leaf = file.log.receipt
        return replace(file, log=replace(file.log, receipt=replace(leaf, index=leaf.index + 1)))

    if other.log is None:
        raise ValueError("a file without log")
    changes: dict[str, tuple[str, Change]] = {
        "order-of-another-file": (
            "order",
            lambda file: replace(file, order=replace(file.order, content=other.order.content)),
        ),
        "order-at-another-place": (
            "order",
            lambda file: replace(file, order=replace(file.order, index=0)),
        ),
        "receipt-of-another-file": ("receipt", lambda file: replace(file, receipt=other.receipt)),
        "log-missing": ("checkpoint", lambda file: replace(file, log=None)),
        "log-of-another-file": ("inclusion", lambda file: replace(file, log=other.log)),
        "receipt-id-of-another-file": (
            "inclusion",
            lambda file: replace(file, receipt_id=other.receipt_id),
        ),
        "receipt-at-another-place": ("inclusion", other_leaf),
        "submission-missing": ("submission", with_log(submission=None)),
        "submission-of-another-file": ("submission", with_log(submission=other.log.submission)),
        "enrollment-missing": ("enrollment", with_log(enrollment=None)),
        "enrollment-of-another-file": ("enrollment", with_log(enrollment=other.log.enrollment)),
        "keys-one-too-many": (
            "keys",
            lambda file: replace(file, keys={**file.keys, MALLORY.key_id: MALLORY.public}),
        ),
        "keys-one-too-few": (
            "keys",
            lambda file: replace(
                file, keys={key_id: key for key_id, key in file.keys.items() if key_id != LOG_KEY.key_id}
            ),
        ),
        "keys-without-the-node": (
            "receipt",
            lambda file: replace(
                file, keys={key_id: key for key_id, key in file.keys.items() if key_id != NODE_KEY.key_id}
            ),
        ),
    }
    return [
        Vector(name=name, data=altered(succeeded, change), fails=fails)
        for name, (fails, change) in changes.items()
    ]


def _revoke(scene: Scene, *, position: int | None, hours: int) -> None:
    first, *others = scene.keyset.entries
    at = START + timedelta(hours=hours)
    revoked = replace(first, revoked_at=at, revoked_log_position=position)
    scene.keyset = replace(scene.keyset, entries=(revoked, *others))


def main() -> None:
    """Write the folder anew."""
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, content in files().items():
        (FOLDER / name).write_bytes(content)


if __name__ == "__main__":
    main()
