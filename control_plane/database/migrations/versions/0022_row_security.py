"""Row security: a call sees and changes the rows of its tenant alone. And the homes of identities.

Revision 0022. The service goes on to log in as af_service, and works as one of two roles that have the same
rights: af_tenant, held to the rows of the tenant in the setting af.tenant, and af_dispatch, which works for
all tenants at once. Expands only: the build before works as af_service itself, which no policy holds back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
TENANT_ROLE = "af_tenant"
DISPATCH_ROLE = "af_dispatch"
NEW_ROLES = (TENANT_ROLE, DISPATCH_ROLE)
VIEWS = ("fleet", "enrollments")
OWN_ROWS = "tenant_id = current_setting('af.tenant', true)"
# Says in an array whom its rows concern, and only the log's integration has to do with it.
OF_ALL_TENANTS = ("log_pending",)

MAKE_ROLE = """DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- made by another database meanwhile
END $$"""
# The service takes the role when it says so, and has none of its rights before.
MAKE_MEMBER = """DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_auth_members
        WHERE roleid = '{role}'::regrole AND member = '{service}'::regrole
    ) THEN
        IF current_setting('server_version_num')::int >= 160000 THEN
            EXECUTE 'GRANT {role} TO {service} WITH INHERIT FALSE, SET TRUE';
        ELSE
            EXECUTE 'GRANT {role} TO {service}';
        END IF;
    END IF;
EXCEPTION WHEN unique_violation THEN NULL;
END $$"""
# What the service may do with each table and sequence, column by column where it is so.
COPY_RIGHTS = """DO $$ DECLARE one record; BEGIN
    FOR one IN
        SELECT c.oid::regclass AS name, c.relkind, a.privilege_type AS privilege, '' AS columns
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = 'public'::regnamespace AND a.grantee = '{service}'::regrole
        UNION ALL
        SELECT c.oid::regclass, c.relkind, a.privilege_type, format('(%I)', t.attname)
        FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
        WHERE c.relnamespace = 'public'::regnamespace AND a.grantee = '{service}'::regrole
    LOOP
        EXECUTE format('GRANT %s %s ON %s %s TO {role}', one.privilege, one.columns,
            CASE one.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, one.name);
    END LOOP;
END $$"""


def upgrade() -> None:
    op.create_table(
        "home_tenants",
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("fk_home_tenants_tenant_id_tenants")
        ),
        sa.PrimaryKeyConstraint("identity", name=op.f("pk_home_tenants")),
    )
    op.execute(f"GRANT SELECT, INSERT ON home_tenants TO {SERVICE_ROLE}")
    for role in NEW_ROLES:
        op.execute(MAKE_ROLE.format(role=role))
        op.execute(MAKE_MEMBER.format(role=role, service=SERVICE_ROLE))
    # Nodes run for every tenant: what a tenant has to know of those that others enrolled, and may prove.
    op.execute(
        "CREATE VIEW fleet AS SELECT node_id, tenant_id, state, receipt_public_key, evicted_at FROM nodes"
    )
    op.execute(
        "CREATE VIEW enrollments AS SELECT audit_entry_id, tenant_id, actor, action, subject, result,"
        " details, recorded_at FROM audit_entries WHERE action = 'node.enrolled'"
    )
    for view in VIEWS:
        op.execute(f"GRANT SELECT ON {view} TO {SERVICE_ROLE}")
    for role in NEW_ROLES:
        op.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        op.execute(COPY_RIGHTS.format(service=SERVICE_ROLE, role=role))
    for table in OF_ALL_TENANTS:
        op.execute(f"REVOKE ALL ON {table} FROM {TENANT_ROLE}")
    for table in _tables_of_tenants():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own_rows ON {table} TO {TENANT_ROLE} USING ({OWN_ROWS})")
        op.execute(f"CREATE POLICY every_row ON {table} TO {DISPATCH_ROLE} USING (true)")
        # Goes with the build before, which sets no role.
        op.execute(f"CREATE POLICY build_before ON {table} TO {SERVICE_ROLE} USING (true)")


def downgrade() -> None:
    for table in _tables_of_tenants():
        for policy in ("own_rows", "every_row", "build_before"):
            op.execute(f"DROP POLICY {policy} ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    # The roles stay: other databases of the cluster may use them.
    for role in NEW_ROLES:
        op.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
        op.execute(f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {role}")
        op.execute(f"REVOKE USAGE ON SCHEMA public FROM {role}")
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    op.drop_table("home_tenants")


def _tables_of_tenants() -> list[str]:
    rows = op.get_bind().exec_driver_sql(
        """SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
            AND a.attname = 'tenant_id' AND NOT a.attisdropped ORDER BY c.relname"""
    )
    return [str(row[0]) for row in rows]
