"""What an execution leaves behind is divided by the time in its ids; the order's digest moves to the attempt.

Revision 0006. Each table that there was becomes the first partition, up to the next Monday but one. Receipts
are divided by their order: a receipt that comes twice meets itself. Control planes have to be stopped.
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
SCHEMA = "partitions"
APPEND_ONLY = ("receipts", "decisions", "order_batches", "audit_entries", "orders")
# Table: column that divides it, prefix of the ids in it.
DIVIDED = {
    "bodies": ("body_id", "bod"),
    "decisions": ("decision_id", "dec"),
    "orders": ("order_id", "ord"),
    "order_batches": ("batch_id", "obt"),
    "receipts": ("order_id", "ord"),
    "audit_entries": ("audit_entry_id", "aud"),
}
PRIMARY = {
    "bodies": "body_id",
    "decisions": "decision_id",
    "orders": "order_id",
    "order_batches": "batch_id",
    "receipts": "receipt_id, order_id",
    "audit_entries": "tenant_id, audit_entry_id",
}
INDEXES = {
    "ix_bodies_unused_uploaded_by": "bodies (uploaded_by) WHERE expires_at IS NOT NULL",
    "ix_bodies_expires_at": "bodies (expires_at) WHERE expires_at IS NOT NULL",
    "ix_bodies_unused_commitment": "bodies (commitment) WHERE expires_at IS NOT NULL",
    "ix_audit_entries_tenant_id_subject": "audit_entries (tenant_id, subject)",
    "ix_audit_entries_watch": "audit_entries (tenant_id, recorded_in, audit_entry_id)",
}
IN_LINE = "toast_tuple_target = 8160"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("order_digest", sa.Text(), nullable=True))
    op.execute("UPDATE attempts a SET order_digest = o.digest FROM orders o WHERE o.order_id = a.order_id")
    # An order is made together with its attempt, whose key says the same.
    op.drop_constraint("uq_orders_execution_id_fencing_token", "orders")
    op.drop_constraint("pk_receipts", "receipts")
    op.create_primary_key("pk_receipts", "receipts", ["receipt_id", "order_id"])
    op.execute(f"CREATE SCHEMA {SCHEMA}")
    for table in DIVIDED:
        _divide(table)
    op.execute(
        """CREATE FUNCTION receipt_is_stored(of_node text, of_sequence bigint) RETURNS boolean
        LANGUAGE plpgsql STABLE AS $$ BEGIN
            RETURN EXISTS (SELECT FROM receipts WHERE node_id = of_node AND sequence = of_sequence);
        END $$"""
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION receipt_is_stored")
    for table in DIVIDED:
        _join(table)
    op.execute(f"DROP SCHEMA {SCHEMA}")
    op.execute(f"ALTER TABLE receipts SET ({IN_LINE})")
    op.create_unique_constraint("uq_receipts_node_id_sequence", "receipts", ["node_id", "sequence"])
    op.create_unique_constraint(
        "uq_orders_execution_id_fencing_token", "orders", ["execution_id", "fencing_token"]
    )
    op.drop_column("attempts", "order_digest")


def _divide(table: str) -> None:
    column, prefix = DIVIDED[table]
    first, key = f"{SCHEMA}.{table}_first", f"pk_{table}"
    op.execute(f"ALTER TABLE {table} SET SCHEMA {SCHEMA}")
    op.execute(f"ALTER TABLE {SCHEMA}.{table} RENAME TO {table}_first")
    op.execute(
        f"CREATE TABLE {table} (LIKE {first} INCLUDING DEFAULTS INCLUDING STORAGE)"
        f" PARTITION BY RANGE ({column})"
    )
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {key} PRIMARY KEY ({PRIMARY[table]})")
    _index_and_grant(table)
    # The service comes through the table alone.
    op.execute(f"REVOKE ALL ON {first} FROM {SERVICE_ROLE}")
    bounds = _bounds(prefix)
    op.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {first} FOR VALUES FROM (MINVALUE) TO ('{bounds[0][1]}')"
    )
    for n, (day, low) in enumerate(bounds):
        high = f"'{bounds[n + 1][1]}'" if n + 1 < len(bounds) else "MAXVALUE"
        name = f"{SCHEMA}.{table}_{day}"
        op.execute(f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES FROM ('{low}') TO ({high})")
        if table == "receipts":
            op.execute(f"ALTER TABLE {name} SET ({IN_LINE})")
            op.execute(f"CREATE UNIQUE INDEX ON {name} (node_id, sequence)")


def _index_and_grant(table: str) -> None:
    for name, definition in INDEXES.items():
        if definition.startswith(f"{table} "):
            op.execute(f"CREATE INDEX {name} ON {definition}")
    rights = "SELECT, INSERT" if table in APPEND_ONLY else "SELECT, INSERT, UPDATE, DELETE"
    op.execute(f"GRANT {rights} ON {table} TO {SERVICE_ROLE}")


def _join(table: str) -> None:
    op.execute(f"ALTER TABLE {table} RENAME TO {table}_divided")
    op.execute(f"CREATE TABLE {table} (LIKE {table}_divided INCLUDING DEFAULTS INCLUDING STORAGE)")
    op.execute(f"INSERT INTO {table} SELECT * FROM {table}_divided")  # noqa: S608 - names of our own
    op.execute(f"DROP TABLE {table}_divided")
    key = "receipt_id" if table == "receipts" else PRIMARY[table]
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY ({key})")
    _index_and_grant(table)


def _bounds(prefix: str) -> list[tuple[str, str]]:
    """Return day and least id of the partitions behind the first one: two weeks, then what has no end."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    monday = today + timedelta(days=14 - today.weekday())
    days = [monday + timedelta(days=7 * n) for n in range(3)]
    return [(f"{day:%Y%m%d%H}", _least_id(prefix, day)) for day in days]


def _least_id(prefix: str, at: datetime) -> str:
    since = f"{int(at.timestamp()) * 1000:012x}"
    return f"{prefix}_{since[:8]}-{since[8:]}-0000-0000-000000000000"
