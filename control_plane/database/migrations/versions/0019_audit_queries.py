"""Audit queries by actor, action and refusal; the log by tenant; what was erased; which receipts are missing.

Revision 0019. Replicas of the build before work on beside it; what they record waits while an index is built.
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
INDEXES = {
    "ix_audit_entries_actor": "audit_entries (tenant_id, actor, audit_entry_id)",
    # By bytes, so that beginnings of actions are found by it whatever the database's language is.
    "ix_audit_entries_action": 'audit_entries (tenant_id, action COLLATE "C", audit_entry_id)',
    "ix_audit_entries_refused": "audit_entries (tenant_id, audit_entry_id, result) WHERE result <> 'ok'",
    "ix_log_entries_tenant_id_log_index": "log_entries (tenant_id, log_index)",
}


def upgrade() -> None:
    for name, definition in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON {definition}")
    op.add_column("executions", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "receipt_marks",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("checked_to", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("missing", sa.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("dropped_to", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_receipt_marks")),
    )
    # What retention dropped only the owner says.
    op.execute(f"GRANT SELECT, INSERT (node_id, checked_to, missing) ON receipt_marks TO {SERVICE_ROLE}")
    op.execute(f"GRANT UPDATE (checked_to, missing) ON receipt_marks TO {SERVICE_ROLE}")


def downgrade() -> None:
    op.drop_table("receipt_marks")
    op.drop_column("executions", "erased_at")
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
