"""Orders are written once, with their place in the batch; the path becomes one value.

Revision 0002. Before, the service wrote the place of an order after its signature; now it may change nothing.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"


def upgrade() -> None:
    op.add_column("orders", sa.Column("proof", sa.LargeBinary(), nullable=True))
    op.execute(
        """UPDATE orders SET proof = coalesce((
            SELECT string_agg(step, ''::bytea ORDER BY n) FROM unnest(path) WITH ORDINALITY AS s (step, n)
        ), ''::bytea) WHERE path IS NOT NULL"""
    )
    op.drop_column("orders", "path")
    op.execute(f"REVOKE UPDATE (batch_id, leaf_index) ON orders FROM {SERVICE_ROLE}")


def downgrade() -> None:
    op.add_column("orders", sa.Column("path", postgresql.ARRAY(sa.LargeBinary()), nullable=True))
    op.execute(
        """UPDATE orders SET path = ARRAY(
            SELECT substring(proof FROM n FOR 32) FROM generate_series(1, octet_length(proof), 32) AS s (n)
        ) WHERE proof IS NOT NULL"""
    )
    op.drop_column("orders", "proof")
    op.execute(f"GRANT UPDATE (batch_id, leaf_index, path) ON orders TO {SERVICE_ROLE}")
