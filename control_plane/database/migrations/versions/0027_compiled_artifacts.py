"""Machine code that compiling nodes made, and nodes that do nothing else.

Revision 0027. Expands only. The build before takes a compiling node for one that runs agents: enroll such
nodes once every replica is of this build.
"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
TENANT_ROLE = "af_tenant"
DISPATCH_ROLE = "af_dispatch"
ROLES = f"{SERVICE_ROLE}, {TENANT_ROLE}, {DISPATCH_ROLE}"
DUTIES = "duty IN ('run', 'compile')"
TARGET = ["module_digest", "profile", "engine_name", "engine_version", "config_digest", "cpu_features"]


def upgrade() -> None:
    for table in ("nodes", "enrollment_tokens"):
        op.add_column(table, sa.Column("duty", sa.Text(), server_default=sa.text("'run'"), nullable=False))
        op.create_check_constraint(op.f(f"ck_{table}_duty"), table, DUTIES)
    # What a version wants compiled. Of those that are there it is not read out of their manifests: a wrong
    # one costs a compilation that nobody asks for, and nodes compile what they need themselves.
    op.add_column(
        "template_versions",
        sa.Column("profile", sa.Text(), server_default=sa.text("'default'"), nullable=False),
    )
    op.create_table(
        "compiled_artifacts",
        sa.Column("compiled_artifact_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in TARGET),
        sa.Column("artifact_digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("compiler_key_id", sa.Text(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["module_digest"],
            ["artifacts.module_digest"],
            name=op.f("fk_compiled_artifacts_module_digest_artifacts"),
        ),
        sa.PrimaryKeyConstraint("compiled_artifact_id", name=op.f("pk_compiled_artifacts")),
    )
    op.create_index(
        "uq_compiled_artifacts_target",
        "compiled_artifacts",
        TARGET,
        unique=True,
        postgresql_where=sa.text("completed_at IS NOT NULL"),
    )
    op.create_table(
        "compiled_pieces",
        sa.Column("compiled_artifact_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["compiled_artifact_id"],
            ["compiled_artifacts.compiled_artifact_id"],
            name=op.f("fk_compiled_pieces_compiled_artifact_id_compiled_artifacts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("compiled_artifact_id", "number", name=op.f("pk_compiled_pieces")),
    )
    # They are compressed already.
    op.execute("ALTER TABLE compiled_pieces ALTER COLUMN content SET STORAGE EXTERNAL")
    # No rows of a tenant: as the modules that they are made of.
    op.execute(f"GRANT SELECT, INSERT, DELETE, UPDATE (completed_at) ON compiled_artifacts TO {ROLES}")
    op.execute(f"GRANT SELECT, INSERT, DELETE ON compiled_pieces TO {ROLES}")


def downgrade() -> None:
    """What was compiled is lost, and nodes compile it themselves; compiling nodes lose their identity."""
    op.drop_table("compiled_pieces")
    op.drop_table("compiled_artifacts")
    op.drop_column("template_versions", "profile")
    # Without the column they would be identities of nodes that run agents.
    op.execute("UPDATE nodes SET state = 'evicted', evicted_at = now() WHERE duty = 'compile'")
    op.execute("DELETE FROM enrollment_tokens WHERE duty = 'compile'")
    for table in ("nodes", "enrollment_tokens"):
        op.drop_constraint(op.f(f"ck_{table}_duty"), table)
        op.drop_column(table, "duty")
