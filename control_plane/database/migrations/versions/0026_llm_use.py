"""What tenants used of language models by day, and how much of it they may.

Revision 0026. Expands only. The build before counts nothing: its replicas store receipts without counting
them and accept what the quota would refuse, so set quotas once every replica is of this build.
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
TENANT_ROLE = "af_tenant"
DISPATCH_ROLE = "af_dispatch"
ROLES = f"{SERVICE_ROLE}, {TENANT_ROLE}, {DISPATCH_ROLE}"
QUOTAS = "llm_tokens_per_day, llm_cost_micros_per_day"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("llm_tokens_per_day", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("llm_cost_micros_per_day", sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_tenants_llm_quotas"), "tenants", "llm_tokens_per_day > 0 AND llm_cost_micros_per_day > 0"
    )
    op.execute(f"GRANT UPDATE ({QUOTAS}) ON tenants TO {ROLES}")
    op.create_table(
        "llm_use",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_micros", sa.BigInteger(), nullable=False),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "day", name=op.f("pk_llm_use")),
    )
    # Today's rows are changed again and again.
    op.execute("ALTER TABLE llm_use SET (fillfactor = 80)")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON llm_use TO {ROLES}")
    op.execute("ALTER TABLE llm_use ENABLE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY own_rows ON llm_use TO {TENANT_ROLE}"
        " USING (tenant_id = current_setting('af.tenant', true))"
    )
    op.execute(f"CREATE POLICY every_row ON llm_use TO {DISPATCH_ROLE} USING (true)")
    op.execute(f"CREATE POLICY build_before ON llm_use TO {SERVICE_ROLE} USING (true)")


def downgrade() -> None:
    op.drop_table("llm_use")
    # Rights on columns outlive these in Postgres 15, and 0022 copies them when it is applied again.
    op.execute(f"REVOKE UPDATE ({QUOTAS}) ON tenants FROM {ROLES}")
    op.drop_constraint(op.f("ck_tenants_llm_quotas"), "tenants")
    op.drop_column("tenants", "llm_cost_micros_per_day")
    op.drop_column("tenants", "llm_tokens_per_day")
