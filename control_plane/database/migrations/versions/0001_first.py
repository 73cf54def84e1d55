"""Every table of the first version, and what the service may do with each.

Revision 0001. The statements are frozen: later changes are migrations of their own.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"

# What is written once and proves something later: nobody but the owner can change or remove it.
APPEND_ONLY = ("audit_entries", "receipts", "decisions", "order_batches", "keysets", "artifacts", "tenants")
# What lives and changes, and is never removed by the service.
CHANGING = (
    "agents",
    "attempts",
    "enrollment_tokens",
    "executions",
    "installation",
    "keys",
    "nodes",
    "sessions",
    "template_versions",
    "templates",
)
# What is also removed: personal data, forgotten request ids, what is handed on, what is taken back.
REMOVABLE = ("bodies", "idempotency_keys", "outbox", "role_bindings")
# A signed order never changes; its place in its batch is known only after its claim has committed.
ORDER_COLUMNS = ("batch_id", "leaf_index", "path")


def upgrade() -> None:
    _create_tables()
    # Bodies and modules are compressed already or not worth it, and are read in pieces.
    op.execute("ALTER TABLE bodies ALTER COLUMN content SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE artifacts ALTER COLUMN module SET STORAGE EXTERNAL")
    # Queues and heartbeats change the same rows again and again.
    for table in ("executions", "attempts", "nodes", "sessions"):
        op.execute(f"ALTER TABLE {table} SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02)")
    _grant()


def downgrade() -> None:
    # The role stays: other databases of the cluster may use it.
    op.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {SERVICE_ROLE}")
    op.execute(f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {SERVICE_ROLE}")
    op.execute(f"REVOKE USAGE ON SCHEMA public FROM {SERVICE_ROLE}")
    _drop_tables()


def _grant() -> None:
    op.execute(
        f"""DO $$ BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{SERVICE_ROLE}') THEN
                CREATE ROLE {SERVICE_ROLE} LOGIN;
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- made by another database meanwhile
        END $$"""
    )
    op.execute(f"GRANT USAGE ON SCHEMA public TO {SERVICE_ROLE}")
    op.execute(f"GRANT SELECT ON alembic_version TO {SERVICE_ROLE}")
    op.execute(f"GRANT SELECT, INSERT ON orders TO {SERVICE_ROLE}")
    op.execute(f"GRANT UPDATE ({', '.join(ORDER_COLUMNS)}) ON orders TO {SERVICE_ROLE}")
    for rights, tables in (
        ("SELECT, INSERT", APPEND_ONLY),
        ("SELECT, INSERT, UPDATE", CHANGING),
        ("SELECT, INSERT, UPDATE, DELETE", REMOVABLE),
    ):
        op.execute(f"GRANT {rights} ON {', '.join(tables)} TO {SERVICE_ROLE}")
    op.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {SERVICE_ROLE}")


def _create_tables() -> None:
    op.create_table(
        "artifacts",
        sa.Column("module_digest", sa.Text(), nullable=False),
        sa.Column("module", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("module_digest", name=op.f("pk_artifacts")),
    )
    op.create_table(
        "attempts",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("execution_id", sa.Text(), nullable=False),
        sa.Column("attempt_number", sa.Integer(), nullable=False),
        sa.Column("fencing_token", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("session_epoch", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'leased'"), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("receipt_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("unsafe_call_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("leased_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('leased', 'running', 'finished', 'lost')", name=op.f("ck_attempts_state")
        ),
        sa.PrimaryKeyConstraint("execution_id", "fencing_token", name=op.f("pk_attempts")),
    )
    op.create_index(
        "ix_attempts_live_lease",
        "attempts",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('leased', 'running')"),
    )
    op.create_index(
        "ix_attempts_live_node",
        "attempts",
        ["node_id", "boot_id"],
        unique=False,
        postgresql_where=sa.text("state IN ('leased', 'running')"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("audit_entry_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), server_default=sa.text("'ok'"), nullable=False),
        sa.Column(
            "details", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "recorded_in",
            sa.BigInteger(),
            server_default=sa.text("(pg_current_xact_id()::text)::bigint"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("tenant_id", "audit_entry_id", name=op.f("pk_audit_entries")),
    )
    op.create_index(
        "ix_audit_entries_tenant_id_subject", "audit_entries", ["tenant_id", "subject"], unique=False
    )
    op.create_index(
        "ix_audit_entries_watch",
        "audit_entries",
        ["tenant_id", "recorded_in", "audit_entry_id"],
        unique=False,
    )
    op.create_table(
        "bodies",
        sa.Column("body_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("commitment", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("uploaded_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("body_id", name=op.f("pk_bodies")),
    )
    op.create_index(
        "ix_bodies_unused_uploaded_by",
        "bodies",
        ["uploaded_by"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index(
        "ix_bodies_expires_at",
        "bodies",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index(
        "ix_bodies_unused_commitment",
        "bodies",
        ["commitment"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("allowed", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("input", sa.LargeBinary(), nullable=False),
        sa.Column("policy_digest", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("decision_id", name=op.f("pk_decisions")),
    )
    op.create_table(
        "executions",
        sa.Column("execution_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("agent_name", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("template_digest", sa.Text(), nullable=False),
        sa.Column("module_digest", sa.Text(), nullable=False),
        sa.Column("parameters", sa.LargeBinary(), nullable=False),
        sa.Column("parameters_digest", sa.Text(), nullable=False),
        sa.Column("input_body_id", sa.Text(), nullable=False),
        sa.Column("input_commitment", sa.Text(), nullable=False),
        sa.Column("input_bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("seed", sa.LargeBinary(), nullable=False),
        sa.Column("clock_start_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("limits", sa.LargeBinary(), nullable=False),
        sa.Column("capabilities", sa.LargeBinary(), nullable=False),
        sa.Column("retry_is_safe", sa.Boolean(), nullable=False),
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("policy_digest", sa.Text(), nullable=False),
        sa.Column("traceparent", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("attempt_number", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("fencing_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("counted_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.Integer(), server_default=sa.text("3"), nullable=False),
        sa.Column("excluded_nodes", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("runs_alone", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("pending_reason", sa.Text(), server_default=sa.text("'QUEUED'"), nullable=False),
        sa.Column("claimable_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("run_deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.Column("limit_name", sa.Text(), nullable=True),
        sa.Column("trap", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("resources_used", sa.LargeBinary(), nullable=True),
        sa.Column("receipt_id", sa.Text(), nullable=True),
        sa.Column("output_body_id", sa.Text(), nullable=True),
        sa.Column("output_commitment", sa.Text(), nullable=True),
        sa.Column("output_bytes", sa.BigInteger(), nullable=True),
        sa.Column("log_body_id", sa.Text(), nullable=True),
        sa.Column("log_bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'running', 'succeeded', 'failed', 'trapped', 'killed', 'rejected', "
            "'cancelled', 'expired', 'lost')",
            name=op.f("ck_executions_state"),
        ),
        sa.PrimaryKeyConstraint("execution_id", name=op.f("pk_executions")),
    )
    op.create_index(
        "ix_executions_deadline",
        "executions",
        ["run_deadline_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('pending', 'running')"),
    )
    op.create_index(
        "ix_executions_queue",
        "executions",
        ["claimable_at", "execution_id"],
        unique=False,
        postgresql_where=sa.text("claimable_at IS NOT NULL"),
    )
    op.create_index(
        "ix_executions_tenant_id_agent_name_execution_id",
        "executions",
        ["tenant_id", "agent_name", "execution_id"],
        unique=False,
    )
    op.create_index(
        "ix_executions_tenant_id_execution_id", "executions", ["tenant_id", "execution_id"], unique=False
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("hmac_key", sa.LargeBinary(), nullable=False),
        sa.Column("request_hmac", sa.LargeBinary(), nullable=False),
        sa.Column("execution_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant_id", "caller", "method", "request_id", name=op.f("pk_idempotency_keys")
        ),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "installation",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("installation", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("singleton", name=op.f("ck_installation_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_installation")),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("spki_der", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_keys")),
    )
    op.create_table(
        "keysets",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_keysets")),
    )
    op.create_table(
        "order_batches",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_order_batches")),
    )
    op.create_table(
        "orders",
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("execution_id", sa.Text(), nullable=False),
        sa.Column("fencing_token", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("leaf_index", sa.Integer(), nullable=True),
        sa.Column("path", sa.ARRAY(sa.LargeBinary()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_orders")),
        sa.UniqueConstraint(
            "execution_id", "fencing_token", name=op.f("uq_orders_execution_id_fencing_token")
        ),
    )
    op.create_table(
        "outbox",
        sa.Column("outbox_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("outbox_id", name=op.f("pk_outbox")),
    )
    op.create_table(
        "receipts",
        sa.Column("receipt_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("execution_id", sa.Text(), nullable=False),
        sa.Column("fencing_token", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("receipt_id", name=op.f("pk_receipts")),
        sa.UniqueConstraint("node_id", "sequence", name=op.f("uq_receipts_node_id_sequence")),
    )
    op.create_index("ix_receipts_execution_id", "receipts", ["execution_id"], unique=False)
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_tenants")),
    )
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("template_digest", sa.Text(), nullable=False),
        sa.Column("template_name", sa.Text(), nullable=False),
        sa.Column("template_version", sa.Text(), nullable=False),
        sa.Column("parameters", sa.LargeBinary(), nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_agents_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("pk_agents")),
    )
    op.create_index(
        "uq_agents_live_name",
        "agents",
        ["tenant_id", "name"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "enrollment_tokens",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("zone", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_enrollment_tokens_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_enrollment_tokens")),
    )
    op.create_table(
        "nodes",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        sa.Column("zone", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("receipt_key_id", sa.Text(), nullable=False),
        sa.Column("receipt_public_key", sa.LargeBinary(), nullable=False),
        sa.Column("certificate_serial", sa.Text(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_hash", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('active', 'draining', 'quarantined', 'evicted')", name=op.f("ck_nodes_state")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_nodes_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_nodes")),
    )
    op.create_table(
        "role_bindings",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "role IN ('admin', 'operator', 'author', 'caller', 'node')", name=op.f("ck_role_bindings_role")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_role_bindings_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "identity", "role", name=op.f("pk_role_bindings")),
    )
    op.create_table(
        "templates",
        sa.Column("template_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_templates_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("template_id", name=op.f("pk_templates")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_templates_tenant_id_name")),
    )
    op.create_table(
        "sessions",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("session_epoch", sa.BigInteger(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("replica_id", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("engine_name", sa.Text(), nullable=False),
        sa.Column("engine_version", sa.Text(), nullable=False),
        sa.Column("engine_config_digest", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("free_slots", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "last_heartbeat_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_sessions_node_id_nodes")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_sessions")),
    )
    op.create_table(
        "template_versions",
        sa.Column("template_version_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("template_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("module_digest", sa.Text(), nullable=False),
        sa.Column("publisher_key_id", sa.Text(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        sa.Column("published_by", sa.Text(), nullable=False),
        sa.Column(
            "published_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "state IN ('active', 'retired', 'revoked')", name=op.f("ck_template_versions_state")
        ),
        sa.ForeignKeyConstraint(
            ["module_digest"],
            ["artifacts.module_digest"],
            name=op.f("fk_template_versions_module_digest_artifacts"),
        ),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["templates.template_id"],
            name=op.f("fk_template_versions_template_id_templates"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_template_versions_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("template_version_id", name=op.f("pk_template_versions")),
        sa.UniqueConstraint("tenant_id", "digest", name=op.f("uq_template_versions_tenant_id_digest")),
        sa.UniqueConstraint(
            "tenant_id", "name", "version", name=op.f("uq_template_versions_tenant_id_name_version")
        ),
    )


def _drop_tables() -> None:
    op.drop_table("template_versions")
    op.drop_table("sessions")
    op.drop_table("templates")
    op.drop_table("role_bindings")
    op.drop_table("nodes")
    op.drop_table("enrollment_tokens")
    op.drop_index("uq_agents_live_name", table_name="agents", postgresql_where=sa.text("deleted_at IS NULL"))
    op.drop_table("agents")
    op.drop_table("tenants")
    op.drop_index("ix_receipts_execution_id", table_name="receipts")
    op.drop_table("receipts")
    op.drop_table("outbox")
    op.drop_table("orders")
    op.drop_table("order_batches")
    op.drop_table("keysets")
    op.drop_table("keys")
    op.drop_table("installation")
    op.drop_index("ix_idempotency_keys_created_at", table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_index("ix_executions_tenant_id_execution_id", table_name="executions")
    op.drop_index("ix_executions_tenant_id_agent_name_execution_id", table_name="executions")
    op.drop_index(
        "ix_executions_queue", table_name="executions", postgresql_where=sa.text("claimable_at IS NOT NULL")
    )
    op.drop_index(
        "ix_executions_deadline",
        table_name="executions",
        postgresql_where=sa.text("state IN ('pending', 'running')"),
    )
    op.drop_table("executions")
    op.drop_table("decisions")
    op.drop_index(
        "ix_bodies_unused_commitment", table_name="bodies", postgresql_where=sa.text("expires_at IS NOT NULL")
    )
    op.drop_index(
        "ix_bodies_expires_at", table_name="bodies", postgresql_where=sa.text("expires_at IS NOT NULL")
    )
    op.drop_index(
        "ix_bodies_unused_uploaded_by",
        table_name="bodies",
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.drop_table("bodies")
    op.drop_index("ix_audit_entries_watch", table_name="audit_entries")
    op.drop_index("ix_audit_entries_tenant_id_subject", table_name="audit_entries")
    op.drop_table("audit_entries")
    op.drop_index(
        "ix_attempts_live_node",
        table_name="attempts",
        postgresql_where=sa.text("state IN ('leased', 'running')"),
    )
    op.drop_index(
        "ix_attempts_live_lease",
        table_name="attempts",
        postgresql_where=sa.text("state IN ('leased', 'running')"),
    )
    op.drop_table("attempts")
    op.drop_table("artifacts")
