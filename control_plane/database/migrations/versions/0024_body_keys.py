"""Keys under which the bodies of a tenant are encrypted, wrapped; and whether they are.

Revision 0024. Expands only. The build before seals nothing and opens nothing: let a tenant encrypt only once
every replica is of this build.
"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
TENANT_ROLE = "af_tenant"
DISPATCH_ROLE = "af_dispatch"
ROLES = f"{SERVICE_ROLE}, {TENANT_ROLE}, {DISPATCH_ROLE}"


def upgrade() -> None:
    op.add_column(
        "tenants",
        sa.Column("encrypt_bodies", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column(
        "tenants",
        sa.Column("body_key_generation", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    op.execute(f"GRANT UPDATE (encrypt_bodies, body_key_generation) ON tenants TO {ROLES}")
    op.create_table(
        "body_keys",
        sa.Column("body_key_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("destroyed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_body_keys_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("body_key_id", name=op.f("pk_body_keys")),
    )
    op.create_index(
        "uq_body_keys_newest",
        "body_keys",
        ["tenant_id"],
        unique=True,
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.create_index("ix_body_keys_tenant_id", "body_keys", ["tenant_id"])
    op.execute(f"GRANT SELECT, INSERT, UPDATE (wrapped, retired_at, destroyed_at) ON body_keys TO {ROLES}")
    op.execute("ALTER TABLE body_keys ENABLE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY own_rows ON body_keys TO {TENANT_ROLE}"
        " USING (tenant_id = current_setting('af.tenant', true))"
    )
    op.execute(f"CREATE POLICY every_row ON body_keys TO {DISPATCH_ROLE} USING (true)")
    op.execute(f"CREATE POLICY build_before ON body_keys TO {SERVICE_ROLE} USING (true)")


def downgrade() -> None:
    """Bodies that are encrypted stay so: without these keys nobody reads them."""
    op.drop_table("body_keys")
    # Rights on columns outlive these in Postgres 15, and 0022 copies them when it is applied again.
    op.execute(f"REVOKE UPDATE (encrypt_bodies, body_key_generation) ON tenants FROM {ROLES}")
    op.drop_column("tenants", "body_key_generation")
    op.drop_column("tenants", "encrypt_bodies")
