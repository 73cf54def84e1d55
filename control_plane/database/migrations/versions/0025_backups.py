"""Backups that were made, for their age; and checkpoints of the log's earlier epochs, before a restore.

Revision 0025. Expands only. The service reads when the newest backup was made, and nothing else of this.
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
DISPATCH_ROLE = "af_dispatch"


def upgrade() -> None:
    op.create_table(
        "backups",
        sa.Column("backup_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("backup_id", name=op.f("pk_backups")),
    )
    op.create_table(
        "log_past_checkpoints",
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("tree_size", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("epoch", "tree_size", name=op.f("pk_log_past_checkpoints")),
    )
    # Of all tenants together: a call for one of them has nothing to do with it.
    op.execute(f"GRANT SELECT (snapshot_at) ON backups TO {SERVICE_ROLE}, {DISPATCH_ROLE}")


def downgrade() -> None:
    op.drop_table("log_past_checkpoints")
    op.drop_table("backups")
