"""Receipts stay in their table's own pages; an index that nobody reads goes.

Revision 0003. An envelope is a little larger than what Postgres keeps in line by itself: each was compressed,
with little effect on what is Base64 inside, and then written to a second table with an index of its own.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE receipts SET (toast_tuple_target = 8160)")
    op.drop_index("ix_receipts_execution_id", table_name="receipts")


def downgrade() -> None:
    op.create_index("ix_receipts_execution_id", "receipts", ["execution_id"], unique=False)
    op.execute("ALTER TABLE receipts RESET (toast_tuple_target)")
