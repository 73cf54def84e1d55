"""Publishes signed template versions, finds them, retires and revokes them. Knows no gRPC and no SQL."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database, Transaction
from control_plane.executions.domain import EndReason, HaltScope
from control_plane.log.ports import Inclusion
from control_plane.policy.domain import Decision, PolicyInput, Question, Subject
from control_plane.policy.gate import PolicyGate
from control_plane.policy.ports import DecisionLog
from control_plane.templates.domain import TemplateRef, TemplateState, TemplateVersion, require_open
from control_plane.templates.ports import ModuleCheck, PublisherKeys, RunningExecutions, TemplateStore
from control_plane.transfers import TransferSlots, paced
from shared.clock import Clock, Random
from shared.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    PackageAlteredError,
    PackageTruncatedError,
    ParentMissingError,
)
from shared.ids import AUDIT_ENTRY, TEMPLATE, TEMPLATE_VERSION, TenantId, new_id
from shared.inheritance import Parent, path_of, require_line, require_narrower
from shared.log_leaf import template_fact
from shared.manifest import Manifest, require_reachable, require_schemas_of_json
from shared.packages import VerifiedTemplate, verify_manifest, verify_package

AGENTS_CHANNEL: Final = "af_agents"
"""Tells every replica that what a name stands for may have changed."""

MAX_CONCURRENT_PUBLISHES: Final = 4
"""Each holds a module of up to 64 MiB in memory."""


class TemplateService:
    """What changes templates."""

    def __init__(
        self,
        *,
        database: Database,
        store: TemplateStore,
        publishers: PublisherKeys,
        check_module: ModuleCheck,
        gate: PolicyGate,
        decisions: DecisionLog,
        audit: AuditLog,
        running: RunningExecutions,
        log: Inclusion,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._publishers = publishers
        self._check_module = check_module
        self._gate = gate
        self._decisions = decisions
        self._audit = audit
        self._running = running
        self._log = log
        self._clock = clock
        self._random = random
        self._publishing = TransferSlots(MAX_CONCURRENT_PUBLISHES)

    async def publish(
        self, subject: Subject, envelope: bytes, chunks: AsyncIterator[bytes]
    ) -> TemplateVersion:
        """Verify a package as a node verifies it, ask policy, store it. The same bytes again: what is stored.

        It is in the transparency log when this returns, unless that took longer than a second.

        Raises:
            VerificationError: One of the numbered checks of `verify_package`, a destination that no call
                matches, the module is no agent's, or it asks for more than the parent that it extends
                (`require_narrower`).
            ParentMissingError: The tenant has no such parent.
            TemplateRetiredError, TemplateRevokedError: The parent, or one of its ancestors, is.
            PolicyDeniedError: Policy says no.
            AlreadyExistsError: Name and version are taken by other bytes.
            ResourceExhaustedError: Too many are published at the moment.
            DeadlineExceededError: The publisher was silent for too long.
        """
        keys = await self._publishers.publishers(self._clock.now())
        # Before a slot and a byte of the module are taken: who signs it, what it may call, how large it is.
        manifest = verify_manifest(envelope, publisher_keys=keys).manifest
        require_reachable(manifest)
        require_schemas_of_json(manifest)
        parent = await self._parent_of(subject.tenant_id, manifest)
        named = manifest.module
        async with self._publishing.hold(subject.identity):
            module = await self._module_of(manifest, parent, paced(chunks))
            template = await asyncio.to_thread(
                verify_package, envelope, {named.digest: module}, publisher_keys=keys
            )
            await asyncio.to_thread(self._check_module, template.module)
            asked = _policy_input(subject, template)
            name = f"{template.manifest.name} {template.manifest.version}"
            decision = await self._gate.require(
                Question.PUBLISH_TEMPLATE, asked, action="template.denied", subject=name
            )
            stored = await self._store_once(subject, template, decision)
        # Nodes take no order for it before (rule 15).
        await self._log.include([template_fact(stored.tenant_id, stored.digest).subject])
        return stored

    async def retire(self, subject: Subject, ref: TemplateRef) -> TemplateVersion:
        """Close a version, and all that extend it, and end what waits of them. Repeat: ends what is left.

        Raises:
            NotFoundError: The tenant has no such version.
            InvalidInputError: It is named by a channel.
        """
        version = await self._change(subject, ref, TemplateState.RETIRED, "template.retired", {})
        await self._halt(subject, version, EndReason.TEMPLATE_RETIRED)
        return version

    async def revoke(self, subject: Subject, ref: TemplateRef, *, reason: str) -> TemplateVersion:
        """Forbid a version, and all that extend it, and stop what runs of them. Repeat: stops what is left.

        Raises:
            NotFoundError: The tenant has no such version.
            InvalidInputError: It is named by a channel.
        """
        version = await self._change(
            subject, ref, TemplateState.REVOKED, "template.revoked", {"reason": reason}
        )
        await self._halt(subject, version, EndReason.TEMPLATE_REVOKED)
        return version

    async def _halt(self, subject: Subject, version: TemplateVersion, reason: EndReason) -> None:
        async with self._database.transaction() as tx:
            children = await self._store.children(tx, subject.tenant_id, version.digest)
        for digest in (version.digest, *(child.digest for child in children)):
            scope = HaltScope(tenant_id=subject.tenant_id, template_digest=digest)
            await self._running.halt(scope, reason, actor=subject.identity)

    async def _parent_of(self, tenant_id: TenantId, manifest: Manifest) -> TemplateVersion | None:
        """Return the open version that a manifest rightly extends; None: it extends none."""
        require_line(manifest)
        if not manifest.extends:
            return None
        named = manifest.extends[0]
        async with self._database.transaction() as tx:
            found = await self._store.find(tx, tenant_id, TemplateRef(digest=named.digest))
        if found is None:
            raise ParentMissingError(f"{path_of(manifest)}: {named.name} ({named.digest}) is not published")
        require_narrower(manifest, Parent.of(found.manifest))
        require_open(found)
        return found

    async def _module_of(
        self, manifest: Manifest, parent: TemplateVersion | None, chunks: AsyncIterator[bytes]
    ) -> bytes:
        """Return the module that came, or, when none did, the parent's if the manifest names it."""
        named = manifest.module
        module = await _collect(chunks, named.size_bytes)
        if not module and parent is not None and parent.module_digest == named.digest:
            async with self._database.transaction() as tx:
                kept = await self._store.read_module(
                    tx, named.digest, offset_bytes=0, max_bytes=named.size_bytes
                )
            return kept or b""
        if len(module) < named.size_bytes:
            raise PackageTruncatedError(
                f"check 6: the module ends after {len(module)} of {named.size_bytes} bytes"
            )
        return module

    async def _store_once(
        self, subject: Subject, template: VerifiedTemplate, decision: Decision
    ) -> TemplateVersion:
        manifest = template.manifest
        version = TemplateVersion(
            template_version_id=new_id(TEMPLATE_VERSION, self._clock, self._random),
            tenant_id=subject.tenant_id,
            name=manifest.name,
            version=manifest.version,
            digest=template.digest,
            module_digest=manifest.module.digest,
            module_bytes=manifest.module.size_bytes,
            publisher_key_id=min(template.signed.publisher_key_ids),
            state=TemplateState.ACTIVE,
            manifest=template.signed.manifest_bytes,
            envelope=template.signed.envelope,
            ancestors=tuple(one.digest for one in manifest.extends),
            profile=manifest.profile,
            published_by=subject.identity,
            published_at=self._clock.now(),
        )
        async with self._database.transaction() as tx:
            await self._lock_parent(tx, version)
            template_id = new_id(TEMPLATE, self._clock, self._random)
            stored = await self._store.add(tx, template_id, version, template.module)
            if stored is not None:
                await self._decisions.append(tx, decision)
                details = {
                    "digest": stored.digest,
                    "publisher_key_id": stored.publisher_key_id,
                    "decision_id": decision.decision_id,
                }
                await self._audit.append(
                    tx,
                    [self._entry(subject, "template.published", f"{stored.name} {stored.version}", details)],
                )
                return stored
            ref = TemplateRef(name=version.name, version=version.version)
            found = await self._store.find(tx, subject.tenant_id, ref)
        if found is None or found.digest != version.digest:
            raise AlreadyExistsError(f"template {ref} is published already, with other content")
        return found

    async def _change(
        self, subject: Subject, ref: TemplateRef, state: TemplateState, action: str, details: dict[str, str]
    ) -> TemplateVersion:
        if ref.channel:
            raise InvalidInputError(
                f"{ref} moves: name the version itself", hint="use NAME@VERSION or a digest"
            )
        async with self._database.transaction() as tx:
            found = await self._store.find(tx, subject.tenant_id, ref)
            if found is None:
                raise NotFoundError(f"there is no template {ref}")
            if found.state in {state, TemplateState.REVOKED}:
                return found
            await self._store.set_state(tx, found, state)
            name = f"{found.name} {found.version}"
            await self._audit.append(tx, [self._entry(subject, action, name, details)])
            for child in await self._store.children(tx, subject.tenant_id, found.digest):
                if child.state not in {state, TemplateState.REVOKED}:
                    await self._store.set_state(tx, child, state)
                    because = {**details, "because_of": name}
                    entry = self._entry(subject, action, f"{child.name} {child.version}", because)
                    await self._audit.append(tx, [entry])
            changed = await self._store.find(tx, subject.tenant_id, ref)
            tx.notify_after_commit(AGENTS_CHANNEL)
        assert changed is not None
        return changed

    async def _lock_parent(self, tx: Transaction, version: TemplateVersion) -> None:
        """Hold the parent open until the child is stored: who revokes it next finds the child as well."""
        if not version.ancestors:
            return
        parent = await self._store.lock(tx, version.tenant_id, version.ancestors[0])
        if parent is None:
            raise ParentMissingError(f"the parent of {version.name}@{version.version} is gone")
        require_open(parent)

    def _entry(self, subject: Subject, action: str, name: str, details: dict[str, str]) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=subject.tenant_id,
            actor=subject.identity,
            action=action,
            subject=name,
            details=details,
        )


async def _collect(chunks: AsyncIterator[bytes], size_bytes: int) -> bytes:
    module = bytearray()
    async for chunk in chunks:
        module += chunk
        if len(module) > size_bytes:
            raise PackageAlteredError(f"check 6: the module is longer than the {size_bytes} bytes signed")
    return bytes(module)


def _policy_input(subject: Subject, template: VerifiedTemplate) -> PolicyInput:
    manifest = template.manifest
    return PolicyInput(
        subject=subject,
        template_name=manifest.name,
        template_version=manifest.version,
        template_digest=template.digest,
        publisher_key_id=min(template.signed.publisher_key_ids),
        capabilities=manifest.capabilities,
        limits=manifest.limits,
    )
