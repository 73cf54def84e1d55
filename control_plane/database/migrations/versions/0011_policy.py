"""Policy bundles, which of them is in force, and what a decision can be made again from.

Revision 0011. Expand only: a replica of the build before works on beside it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
ADDED = (
    ("input_digest", sa.Text()),
    ("result_digest", sa.Text()),
    ("reasons", postgresql.JSONB()),
    ("duration_us", sa.Integer()),
    ("engine", sa.Text()),
    ("engine_decision_id", sa.Text()),
)


def upgrade() -> None:
    op.create_table(
        "policy_bundles",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("files", sa.LargeBinary(), nullable=False),
        sa.Column("published_by", sa.Text(), nullable=False),
        sa.Column(
            "published_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_policy_bundles")),
    )
    op.create_index(
        "uq_policy_bundles_version",
        "policy_bundles",
        ["version"],
        unique=True,
        postgresql_where=sa.text("version > 0"),
    )
    op.create_table(
        "policy_activations",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("activated_by", sa.Text(), nullable=False),
        sa.Column(
            "activated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint(
            "number > 0 AND place >= 0 AND place <= number", name=op.f("ck_policy_activations_place")
        ),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["policy_bundles.digest"],
            name=op.f("fk_policy_activations_digest_policy_bundles"),
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_policy_activations")),
    )
    op.execute(f"GRANT SELECT, INSERT ON policy_bundles, policy_activations TO {SERVICE_ROLE}")
    for name, kind in ADDED:
        op.add_column("decisions", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for name, _ in reversed(ADDED):
        op.drop_column("decisions", name)
    op.drop_table("policy_activations")
    op.drop_table("policy_bundles")
