"""Leaves for what nodes are told to believe: templates, policies, keysets and nodes.

Revision 0021. Triggers announce them as 0015 does receipts and audit entries. `policies_used` names every
policy that was put in force or has decided: nodes ask whether the one that an order names is in the log. A
session holds what its node has seen of the log.
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0019"
branch_labels = None
depends_on = None

SERVICE_ROLE = "af_service"
HOME = "default"
"""The tenant of what concerns the installation."""


def _at(column: str) -> str:
    return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


def _lines(*columns: str) -> str:
    return f"sha256(convert_to(concat_ws(E'\\n', {', '.join(columns)}), 'UTF8'))"


def _raw(digest: str) -> str:
    return f"decode(substr({digest}, 8), 'hex')"


NODE_FIELDS = ("node_id", "tenant_id", "receipt_key_id", "encode(sha256(receipt_public_key), 'hex')")
ACTIVATION_FIELDS = ("number", "coalesce(digest, '')", "place", "activated_by", _at("activated_at"))
ANNOUNCED = (
    # Table, kind, tenant, subject, content.
    ("template_versions", "template", "tenant_id", "tenant_id || '/' || digest", _raw("digest")),
    ("policies_used", "policy", f"'{HOME}'::text", "digest", _raw("digest")),
    (
        "policy_activations",
        "policy_activation",
        f"'{HOME}'::text",
        "'activation/' || number",
        _lines(*ACTIVATION_FIELDS),
    ),
    ("keysets", "keyset", f"'{HOME}'::text", "'keyset/' || version", "sha256(envelope)"),
    ("nodes", "node", "tenant_id", "node_id", _lines(*NODE_FIELDS, _at("enrolled_at"))),
)
CHANGED = (
    # Table, kind, states that are announced, subject, content.
    (
        "template_versions",
        "template_state",
        "'retired', 'revoked'",
        "NEW.tenant_id || '/' || NEW.digest || '/' || NEW.state",
        _lines("NEW.tenant_id", "NEW.digest", "NEW.name", "NEW.version", "NEW.state"),
    ),
    (
        "nodes",
        "node_state",
        "'quarantined', 'evicted'",
        "NEW.node_id || '/' || NEW.state",
        _lines("NEW.node_id", "NEW.tenant_id", "NEW.receipt_key_id", "NEW.state"),
    ),
)
ANNOUNCE = """
CREATE FUNCTION announce_{table}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public AS $$ BEGIN
    INSERT INTO public.log_pending (kind, tenant_ids, subjects, contents)
    SELECT '{kind}', array_agg({tenant}), array_agg({subject}), array_agg({content}) FROM fresh
    HAVING count(*) > 0;
    RETURN NULL;
END $$"""
ANNOUNCE_CHANGE = """
CREATE FUNCTION announce_{table}_state() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public AS $$ BEGIN
    INSERT INTO public.log_pending (kind, tenant_ids, subjects, contents)
    VALUES ('{kind}', ARRAY[NEW.tenant_id], ARRAY[{subject}], ARRAY[{content}]);
    RETURN NULL;
END $$"""
NOTE_POLICY = """
CREATE FUNCTION note_policy_used() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public AS $$ BEGIN
    INSERT INTO public.policies_used (digest) SELECT digest FROM fresh WHERE digest IS NOT NULL
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$"""
# Not what an earlier upgrade has announced already.
ANNOUNCE_OLD = """
INSERT INTO log_pending (kind, tenant_ids, subjects, contents)
SELECT '{kind}', array_agg(tenant), array_agg(said), array_agg(content)
FROM (SELECT {tenant} AS tenant, {subject} AS said, {content} AS content,
    row_number() OVER (ORDER BY {subject}) / 1000 AS part FROM {table}) t
WHERE NOT EXISTS (SELECT FROM log_entries e WHERE e.subject = said)
    AND NOT EXISTS (SELECT FROM log_pending p WHERE said = ANY(p.subjects))
GROUP BY part ORDER BY part"""


def upgrade() -> None:
    op.create_table(
        "policies_used",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column(
            "first_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_policies_used")),
    )
    op.execute(f"GRANT SELECT, INSERT ON policies_used TO {SERVICE_ROLE}")
    op.execute(
        "INSERT INTO policies_used (digest)"
        " SELECT DISTINCT digest FROM policy_activations WHERE digest IS NOT NULL"
    )
    for table, kind, tenant, subject, content in ANNOUNCED:
        parts = {"table": table, "kind": kind, "tenant": tenant, "subject": subject, "content": content}
        op.execute(ANNOUNCE.format(**parts))
        op.execute(
            f"CREATE TRIGGER announce AFTER INSERT ON {table} REFERENCING NEW TABLE AS fresh"
            f" FOR EACH STATEMENT EXECUTE FUNCTION announce_{table}()"
        )
        op.execute(ANNOUNCE_OLD.format(**parts))
    for table, kind, states, subject, content in CHANGED:
        op.execute(ANNOUNCE_CHANGE.format(table=table, kind=kind, subject=subject, content=content))
        # Of a column that hardly any statement names: receipts and heartbeats pay nothing.
        op.execute(
            f"CREATE TRIGGER announce_state AFTER UPDATE OF state ON {table} FOR EACH ROW"
            f" WHEN (OLD.state IS DISTINCT FROM NEW.state AND NEW.state IN ({states}))"
            f" EXECUTE FUNCTION announce_{table}_state()"
        )
    op.execute(NOTE_POLICY)
    op.execute(
        "CREATE TRIGGER note_policy_used AFTER INSERT ON policy_activations REFERENCING NEW TABLE AS fresh"
        " FOR EACH STATEMENT EXECUTE FUNCTION note_policy_used()"
    )
    op.add_column(
        "sessions", sa.Column("log_size", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column(
        "sessions",
        sa.Column("log_root", sa.LargeBinary(), server_default=sa.text("''::bytea"), nullable=False),
    )
    op.add_column(
        "sessions", sa.Column("log_problem", sa.Text(), server_default=sa.text("''"), nullable=False)
    )


def downgrade() -> None:
    for column in ("log_problem", "log_root", "log_size"):
        op.drop_column("sessions", column)
    op.execute("DROP TRIGGER note_policy_used ON policy_activations")
    op.execute("DROP FUNCTION note_policy_used()")
    for table, *_ in CHANGED:
        op.execute(f"DROP TRIGGER announce_state ON {table}")
        op.execute(f"DROP FUNCTION announce_{table}_state()")
    for table, *_ in ANNOUNCED:
        op.execute(f"DROP TRIGGER announce ON {table}")
        op.execute(f"DROP FUNCTION announce_{table}()")
    op.drop_table("policies_used")
