"""The transparency log: what waits for it, its entries, its tiles, its head and its checkpoints.

Revision 0015. Every receipt and audit entry is announced by a trigger, so that none is left out whoever
writes it. The outbox of revision 0001, which nobody used, goes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
GROUP = 1000
# Of one statement's new rows: who they belong to, what they are, and the digest of what they say.
ANNOUNCE = """
CREATE FUNCTION announce_{table}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public AS $$ BEGIN
    INSERT INTO public.log_pending (kind, tenant_ids, subjects, contents)
    SELECT '{kind}', array_agg(tenant_id), array_agg({subject}), array_agg({content}) FROM fresh
    HAVING count(*) > 0;
    RETURN NULL;
END $$"""
AUDIT_CONTENT = (
    "sha256(convert_to(concat_ws(E'\\n', audit_entry_id, tenant_id, actor, action, subject, result,"
    " to_char(recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), details::text), 'UTF8'))"
)
ANNOUNCED = (
    # Table, kind, subject, content.
    ("receipts", "receipt", "receipt_id", "hash"),
    ("audit_entries", "audit_entry", "audit_entry_id", AUDIT_CONTENT),
)


def upgrade() -> None:
    op.drop_table("outbox")
    op.create_table(
        "log_pending",
        sa.Column("log_pending_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tenant_ids", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("subjects", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("contents", sa.ARRAY(sa.LargeBinary()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("log_pending_id", name=op.f("pk_log_pending")),
    )
    op.create_table(
        "log_entries",
        sa.Column("log_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("commitment", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("log_index", name=op.f("pk_log_entries")),
        sa.UniqueConstraint("subject", name=op.f("uq_log_entries_subject")),
    )
    op.create_table(
        "log_tiles",
        sa.Column("level", sa.SmallInteger(), nullable=False),
        sa.Column("tile_index", sa.BigInteger(), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "tile_index", name=op.f("pk_log_tiles")),
    )
    op.create_table(
        "log_head",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("tree_size", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column(
            "integrated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint("singleton", name=op.f("ck_log_head_singleton")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("pk_log_head")),
    )
    op.create_table(
        "log_checkpoints",
        sa.Column("tree_size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tree_size", name=op.f("pk_log_checkpoints")),
    )
    # Hashes do not compress, and tiles of the edge are written again and again.
    op.execute("ALTER TABLE log_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE log_tiles SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02)")
    op.execute("ALTER TABLE log_pending SET (autovacuum_vacuum_scale_factor = 0.02)")
    for table, kind, subject, content in ANNOUNCED:
        op.execute(ANNOUNCE.format(table=table, kind=kind, subject=subject, content=content))
        op.execute(
            f"CREATE TRIGGER announce AFTER INSERT ON {table} REFERENCING NEW TABLE AS fresh"
            f" FOR EACH STATEMENT EXECUTE FUNCTION announce_{table}()"
        )
        _announce_what_is_there(table, kind, subject, content)
    op.execute(f"GRANT SELECT, DELETE ON log_pending TO {SERVICE_ROLE}")
    op.execute(f"GRANT SELECT, INSERT ON log_entries, log_checkpoints TO {SERVICE_ROLE}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON log_tiles, log_head TO {SERVICE_ROLE}")


def _announce_what_is_there(table: str, kind: str, subject: str, content: str) -> None:
    op.execute(
        f"""INSERT INTO log_pending (kind, tenant_ids, subjects, contents)
        SELECT '{kind}', array_agg(tenant_id ORDER BY said), array_agg(said ORDER BY said),
            array_agg(content ORDER BY said)
        FROM (SELECT tenant_id, {subject} AS said, {content} AS content,
            row_number() OVER (ORDER BY {subject}) / {GROUP} AS part FROM {table}) t
        GROUP BY part ORDER BY part"""  # noqa: S608 - names of our own
    )


def downgrade() -> None:
    for table, *_ in ANNOUNCED:
        op.execute(f"DROP TRIGGER announce ON {table}")
        op.execute(f"DROP FUNCTION announce_{table}()")
    for table in ("log_checkpoints", "log_head", "log_tiles", "log_entries", "log_pending"):
        op.drop_table(table)
    op.create_table(
        "outbox",
        sa.Column("outbox_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("outbox_id", name=op.f("pk_outbox")),
    )
    op.execute(f"GRANT SELECT, INSERT, DELETE ON outbox TO {SERVICE_ROLE}")
    op.execute(f"GRANT USAGE ON SEQUENCE outbox_outbox_id_seq TO {SERVICE_ROLE}")
