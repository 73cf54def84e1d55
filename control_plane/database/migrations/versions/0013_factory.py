"""Channels of templates, rollouts of agents, and emergency stops.

Revision 0013. Expand only: a replica of the build before works on beside it. It knows of no stop and no
rollout: both are for when every replica is of this build.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
AGENT_COLUMNS = (
    "candidate_digest",
    "candidate_version",
    "previous_digest",
    "previous_version",
)
AGENT_PARAMETERS = ("candidate_parameters", "previous_parameters")


def upgrade() -> None:
    _create_stops()
    _create_channels()
    op.add_column("agents", sa.Column("channel", sa.Text(), server_default=sa.text("''"), nullable=False))
    for name in AGENT_COLUMNS:
        op.add_column("agents", sa.Column(name, sa.Text(), nullable=True))
    for name in AGENT_PARAMETERS:
        op.add_column("agents", sa.Column(name, sa.LargeBinary(), nullable=True))
    op.add_column("agents", sa.Column("candidate_percent", sa.SmallInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_agents_candidate_percent"), "agents", "candidate_percent BETWEEN 1 AND 99"
    )
    op.create_index(
        "ix_agents_channel",
        "agents",
        ["tenant_id", "template_name", "channel"],
        postgresql_where=sa.text("channel <> '' AND deleted_at IS NULL"),
    )
    op.add_column(
        "template_versions", sa.Column("state_changed_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.create_index(
        "ix_template_versions_state_changed_at",
        "template_versions",
        ["state_changed_at"],
        postgresql_where=sa.text("state_changed_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_template_versions_state_changed_at", "template_versions")
    op.drop_column("template_versions", "state_changed_at")
    op.drop_index("ix_agents_channel", "agents")
    op.drop_constraint(op.f("ck_agents_candidate_percent"), "agents", type_="check")
    for name in ("channel", "candidate_percent", *AGENT_PARAMETERS, *AGENT_COLUMNS):
        op.drop_column("agents", name)
    op.drop_table("template_channels")
    op.drop_table("stops")


def _create_stops() -> None:
    op.create_table(
        "stops",
        sa.Column("stop_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("template_name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("template_digest", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("lifted_by", sa.Text(), nullable=True),
        sa.Column("lift_reason", sa.Text(), nullable=True),
        sa.Column("lifted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("stop_id", name=op.f("pk_stops")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_stops_tenant_id_tenants")
        ),
    )
    op.create_index(
        "uq_stops_live_scope",
        "stops",
        ["tenant_id", "template_name", "template_digest"],
        unique=True,
        postgresql_where=sa.text("lifted_at IS NULL"),
    )
    op.execute(f"GRANT SELECT, INSERT ON stops TO {SERVICE_ROLE}")
    op.execute(f"GRANT UPDATE (lifted_by, lift_reason, lifted_at) ON stops TO {SERVICE_ROLE}")


def _create_channels() -> None:
    op.create_table(
        "template_channels",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("template_name", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("template_digest", sa.Text(), nullable=False),
        sa.Column("template_version", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "template_name", "channel", name=op.f("pk_template_channels")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_template_channels_tenant_id_tenants")
        ),
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON template_channels TO {SERVICE_ROLE}")
