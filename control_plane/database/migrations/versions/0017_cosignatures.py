"""Cosignatures of the log's checkpoints, and what each witness has seen.

Revision 0017.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0015"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"


def _at(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "log_cosignatures",
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("tree_size", sa.BigInteger(), nullable=False),
        sa.Column("witness", sa.Text(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("cosigned_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("origin", "tree_size", "witness", name=op.f("pk_log_cosignatures")),
    )
    op.create_table(
        "log_witnesses",
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("witness", sa.Text(), nullable=False),
        sa.Column("tree_size", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _at("next_at"),
        _at("round_until"),
        sa.Column("cosigned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fork", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("forked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("origin", "witness", name=op.f("pk_log_witnesses")),
    )
    op.execute(f"GRANT SELECT, INSERT ON log_cosignatures TO {SERVICE_ROLE}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON log_witnesses TO {SERVICE_ROLE}")


def downgrade() -> None:
    op.drop_table("log_witnesses")
    op.drop_table("log_cosignatures")
