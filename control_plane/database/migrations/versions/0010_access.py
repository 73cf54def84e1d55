"""Roles, tenants and identities.

Revision 0010. Expand only: a replica of the build before works on beside it. It knows nothing of the new
roles, so bind them when the last one of that build is gone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
ROLES_BEFORE = "'admin', 'operator', 'author', 'caller', 'node'"
ROLES = "'viewer', 'caller', 'author', 'operator', 'auditor', 'admin', 'node'"


def upgrade() -> None:
    op.drop_constraint(op.f("ck_role_bindings_role"), "role_bindings", type_="check")
    op.create_check_constraint(op.f("ck_role_bindings_role"), "role_bindings", f"role IN ({ROLES})")
    op.add_column(
        "role_bindings", sa.Column("created_by", sa.Text(), server_default=sa.text("''"), nullable=False)
    )
    op.create_index("ix_role_bindings_identity", "role_bindings", ["identity"])
    op.add_column(
        "tenants", sa.Column("display_name", sa.Text(), server_default=sa.text("''"), nullable=False)
    )
    op.execute(
        f"GRANT UPDATE (display_name, max_pending, executions_per_minute) ON tenants TO {SERVICE_ROLE}"
    )
    op.create_table(
        "bootstrap_secrets",
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_by", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_bootstrap_secrets_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("pk_bootstrap_secrets")),
    )
    # Only `init`, as the owner, makes one.
    op.execute(f"GRANT SELECT, UPDATE (used_at, used_by) ON bootstrap_secrets TO {SERVICE_ROLE}")
    op.add_column(
        "enrollment_tokens", sa.Column("max_uses", sa.Integer(), server_default=sa.text("1"), nullable=False)
    )
    op.add_column(
        "enrollment_tokens", sa.Column("uses", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("nodes", sa.Column("evicted_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("nodes", "evicted_at")
    # A token of several uses would be one of a single use, for any zone.
    op.execute("UPDATE enrollment_tokens SET used_at = now() WHERE max_uses > 1 AND used_at IS NULL")
    op.drop_column("enrollment_tokens", "uses")
    op.drop_column("enrollment_tokens", "max_uses")
    op.drop_table("bootstrap_secrets")
    op.execute(
        f"REVOKE UPDATE (display_name, max_pending, executions_per_minute) ON tenants FROM {SERVICE_ROLE}"
    )
    op.drop_column("tenants", "display_name")
    op.drop_index("ix_role_bindings_identity", table_name="role_bindings")
    op.drop_column("role_bindings", "created_by")
    op.execute("DELETE FROM role_bindings WHERE role IN ('viewer', 'auditor')")
    op.drop_constraint(op.f("ck_role_bindings_role"), "role_bindings", type_="check")
    op.create_check_constraint(op.f("ck_role_bindings_role"), "role_bindings", f"role IN ({ROLES_BEFORE})")
