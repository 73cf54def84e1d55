"""Every table of the control plane, as SQLAlchemy Core. Owns names, keys and checks; holds no query.

Enumerations are text with a CHECK, because a native enum cannot be downgraded. `tenant_id` leads every key by
which a tenant's data is read. Migrations are the truth; a test proves that they and this page agree.
"""

from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

EXECUTION_STATES: Final = (
    "pending",
    "running",
    "succeeded",
    "failed",
    "trapped",
    "killed",
    "rejected",
    "cancelled",
    "expired",
    "lost",
)
ATTEMPT_STATES: Final = ("leased", "running", "finished", "lost")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _at(name: str, *, nullable: bool = False, now: bool = False) -> Column[Any]:
    return Column(
        name, DateTime(timezone=True), nullable=nullable, server_default=text("now()") if now else None
    )


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    names = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({names})", name=column)


def _tenant() -> Column[Any]:
    return Column("tenant_id", Text, ForeignKey("tenants.tenant_id"), nullable=False)


def _tenant_of_origin() -> Column[Any]:
    """A tenant copied from a row that was checked.

    A foreign key would run a query and lock the tenant's row for every row of an execution.
    """
    return Column("tenant_id", Text, nullable=False)


installation = Table(
    "installation",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("installation", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False, server_default=text("1")),
    _at("created_at", now=True),
    CheckConstraint("singleton", name="singleton"),
)

schema_support = Table(
    "schema_support",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    # Builds of an older revision than this cannot work on the schema: `migrate.require_current_schema`.
    Column("oldest_revision", Text, nullable=False),
    CheckConstraint("singleton", name="singleton"),
)

# Quotas: null means what the settings say for every tenant.
tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    _at("created_at", now=True),
    Column("max_pending", Integer),
    Column("executions_per_minute", Integer),
    Column("display_name", Text, nullable=False, server_default=text("''")),
    Column("encrypt_bodies", Boolean, nullable=False, server_default=text("false")),
    # Of the key-encryption key; each erasure of the keys below begins another.
    Column("body_key_generation", Integer, nullable=False, server_default=text("0")),
    # Of language models, by day (UTC); null as above.
    Column("llm_tokens_per_day", BigInteger),
    Column("llm_cost_micros_per_day", BigInteger),
    CheckConstraint("max_pending > 0 AND executions_per_minute > 0", name="quotas"),
    CheckConstraint("llm_tokens_per_day > 0 AND llm_cost_micros_per_day > 0", name="llm_quotas"),
)

# What receipts told of language models, by the day (UTC) on which they came.
llm_use = Table(
    "llm_use",
    metadata,
    _tenant_of_origin(),
    Column("day", Date, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("runs", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "day"),
)

# Data keys of bodies, wrapped; empty once destroyed. Bodies that are encrypted name theirs.
body_keys = Table(
    "body_keys",
    metadata,
    Column("body_key_id", Text, primary_key=True),
    _tenant(),
    Column("generation", Integer, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    _at("created_at", now=True),
    _at("retired_at", nullable=True),
    _at("destroyed_at", nullable=True),
    Index("uq_body_keys_newest", "tenant_id", unique=True, postgresql_where=text("retired_at IS NULL")),
    Index("ix_body_keys_tenant_id", "tenant_id"),
)

role_bindings = Table(
    "role_bindings",
    metadata,
    _tenant(),
    Column("identity", Text, nullable=False),
    Column("role", Text, nullable=False),
    _at("created_at", now=True),
    # Empty: `init` made it.
    Column("created_by", Text, nullable=False, server_default=text("''")),
    PrimaryKeyConstraint("tenant_id", "identity", "role"),
    _one_of("role", ("viewer", "caller", "author", "operator", "auditor", "admin", "node")),
    Index("ix_role_bindings_identity", "identity"),
)

# Where calls of an identity count that name no tenant: the only one it was bound in when it first made one.
home_tenants = Table(
    "home_tenants",
    metadata,
    Column("identity", Text, primary_key=True),
    _tenant(),
    _at("settled_at", now=True),
)

# One-time secrets that make their bearer an administrator. Only the owner of the database adds one.
bootstrap_secrets = Table(
    "bootstrap_secrets",
    metadata,
    Column("secret_hash", Text, primary_key=True),
    _tenant(),
    _at("created_at", now=True),
    _at("expires_at"),
    _at("used_at", nullable=True),
    Column("used_by", Text, nullable=True),
)

# Public keys the control plane signs or verifies with, beside the keysets that list them.
keys = Table(
    "keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("spki_der", LargeBinary, nullable=False),
    _at("created_at", now=True),
    _at("revoked_at", nullable=True),
)

keysets = Table(
    "keysets",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("envelope", LargeBinary, nullable=False),
    _at("created_at", now=True),
)

# The newest statement that the newest keyset is the newest: one row, replaced every few seconds.
freshness = Table(
    "freshness",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("envelope", LargeBinary, nullable=False),
    _at("issued_at"),
    CheckConstraint("singleton", name="singleton"),
)

templates = Table(
    "templates",
    metadata,
    Column("template_id", Text, primary_key=True),
    _tenant(),
    Column("name", Text, nullable=False),
    _at("created_at", now=True),
    UniqueConstraint("tenant_id", "name"),
)

# The signed modules, by the digest of their exact bytes.
artifacts = Table(
    "artifacts",
    metadata,
    Column("module_digest", Text, primary_key=True),
    Column("module", LargeBinary, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    _at("created_at", now=True),
)

# What compiling nodes made of modules. One row for each engine once it is whole; rows that are not whole yet
# are uploads under way, or what is left of them.
compiled_artifacts = Table(
    "compiled_artifacts",
    metadata,
    Column("compiled_artifact_id", Text, primary_key=True),
    Column("module_digest", Text, ForeignKey("artifacts.module_digest"), nullable=False),
    Column("profile", Text, nullable=False),
    Column("engine_name", Text, nullable=False),
    Column("engine_version", Text, nullable=False),
    Column("config_digest", Text, nullable=False),
    Column("cpu_features", Text, nullable=False),
    Column("artifact_digest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("compiler_key_id", Text, nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("node_id", Text, nullable=False),
    _at("began_at", now=True),
    _at("completed_at", nullable=True),
    Index(
        "uq_compiled_artifacts_target",
        "module_digest",
        "profile",
        "engine_name",
        "engine_version",
        "config_digest",
        "cpu_features",
        unique=True,
        postgresql_where=text("completed_at IS NOT NULL"),
    ),
)

compiled_pieces = Table(
    "compiled_pieces",
    metadata,
    Column(
        "compiled_artifact_id",
        Text,
        ForeignKey("compiled_artifacts.compiled_artifact_id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("number", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
    PrimaryKeyConstraint("compiled_artifact_id", "number"),
)

template_versions = Table(
    "template_versions",
    metadata,
    Column("template_version_id", Text, primary_key=True),
    _tenant(),
    Column("template_id", Text, ForeignKey("templates.template_id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("module_digest", Text, ForeignKey("artifacts.module_digest"), nullable=False),
    Column("publisher_key_id", Text, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'active'")),
    Column("published_by", Text, nullable=False),
    _at("published_at", now=True),
    # Digests of the versions that it extends, the nearest first.
    Column("ancestors", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Index("ix_template_versions_ancestors", "ancestors", postgresql_using="gin"),
    # When it was retired or revoked.
    _at("state_changed_at", nullable=True),
    # Its manifest's; of versions from before 0027 the default one, whatever theirs is.
    Column("profile", Text, nullable=False, server_default=text("'default'")),
    UniqueConstraint("tenant_id", "name", "version"),
    UniqueConstraint("tenant_id", "digest"),
    _one_of("state", ("active", "retired", "revoked")),
    Index(
        "ix_template_versions_state_changed_at",
        "state_changed_at",
        postgresql_where=text("state_changed_at IS NOT NULL"),
    ),
)

# A channel points at one version of its template at a time; who follows it moves with it.
template_channels = Table(
    "template_channels",
    metadata,
    _tenant(),
    Column("template_name", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("template_digest", Text, nullable=False),
    Column("template_version", Text, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default=text("1")),
    Column("updated_by", Text, nullable=False),
    _at("updated_at", now=True),
    PrimaryKeyConstraint("tenant_id", "template_name", "channel"),
)

# Emergency stops: live until they are lifted, and kept after that. A name and a digest that are empty: all of
# the tenant.
stops = Table(
    "stops",
    metadata,
    Column("stop_id", Text, primary_key=True),
    _tenant(),
    Column("template_name", Text, nullable=False, server_default=text("''")),
    Column("template_digest", Text, nullable=False, server_default=text("''")),
    Column("reason", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    _at("created_at", now=True),
    Column("lifted_by", Text, nullable=True),
    Column("lift_reason", Text, nullable=True),
    _at("lifted_at", nullable=True),
    # Of a quarantine: the receipt, and what running it again came to (canonical JSON).
    Column("evidence", LargeBinary, nullable=True),
    Index(
        "uq_stops_live_scope",
        "tenant_id",
        "template_name",
        "template_digest",
        unique=True,
        postgresql_where=text("lifted_at IS NULL"),
    ),
)

# Engines that nodes must not run agents with. An empty version or configuration: all of them.
engine_denials = Table(
    "engine_denials",
    metadata,
    Column("engine_name", Text, nullable=False),
    Column("engine_version", Text, nullable=False, server_default=text("''")),
    Column("engine_config_digest", Text, nullable=False, server_default=text("''")),
    Column("reason", Text, nullable=False),
    Column("denied_by", Text, nullable=False),
    _at("denied_at", now=True),
    PrimaryKeyConstraint("engine_name", "engine_version", "engine_config_digest"),
)

agents = Table(
    "agents",
    metadata,
    Column("agent_id", Text, primary_key=True),
    _tenant(),
    Column("name", Text, nullable=False),
    Column("template_digest", Text, nullable=False),
    Column("template_name", Text, nullable=False),
    Column("template_version", Text, nullable=False),
    Column("parameters", LargeBinary, nullable=False),
    Column("revision", BigInteger, nullable=False, server_default=text("1")),
    _at("created_at", now=True),
    _at("updated_at", now=True),
    _at("deleted_at", nullable=True),
    # Sums over its kv_entries. Who writes those holds this row's lock.
    Column("kv_keys", Integer, nullable=False, server_default=text("0")),
    Column("kv_bytes", BigInteger, nullable=False, server_default=text("0")),
    # The channel it follows; empty: none.
    Column("channel", Text, nullable=False, server_default=text("''")),
    # The version that a rollout gives to some executions, and the one before the last that was finished.
    Column("candidate_digest", Text, nullable=True),
    Column("candidate_version", Text, nullable=True),
    Column("candidate_parameters", LargeBinary, nullable=True),
    Column("candidate_percent", SmallInteger, nullable=True),
    Column("previous_digest", Text, nullable=True),
    Column("previous_version", Text, nullable=True),
    Column("previous_parameters", LargeBinary, nullable=True),
    CheckConstraint("candidate_percent BETWEEN 1 AND 99", name="candidate_percent"),
    Index(
        "ix_agents_channel",
        "tenant_id",
        "template_name",
        "channel",
        postgresql_where=text("channel <> '' AND deleted_at IS NULL"),
    ),
    # A deleted agent keeps its row for its executions; its name is free again.
    Index(
        "uq_agents_live_name", "tenant_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")
    ),
)

# What an agent keeps between its runs: written when the result of a run is accepted (rule 6).
kv_entries = Table(
    "kv_entries",
    metadata,
    _tenant_of_origin(),
    Column("agent_id", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("value", LargeBinary, nullable=False),
    # Key and value, as the quota counts them.
    Column("size_bytes", BigInteger, nullable=False),
    # The execution whose result brought it.
    Column("written_by", Text, nullable=False),
    _at("updated_at", now=True),
    PrimaryKeyConstraint("tenant_id", "agent_id", "key"),
)

# Inputs, outputs, logs and recordings. The commitment binds salt and bytes; erasing the row erases the
# personal data.
bodies = Table(
    "bodies",
    metadata,
    Column("body_id", Text, primary_key=True),
    _tenant_of_origin(),
    Column("salt", LargeBinary, nullable=False),
    Column("commitment", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # Encrypted exactly if it is longer than size_bytes: control_plane/body_keys/sealing.py.
    Column("content", LargeBinary, nullable=False),
    # SHA-256 of the plain content, for idempotency while the body lives.
    Column("digest", Text, nullable=False),
    _at("created_at", now=True),
    # Set on an upload, cleared by the first execution that uses it; an unused one is removed after this.
    _at("expires_at", nullable=True),
    # The caller, or the attempt, whose unused uploads are counted together.
    Column("uploaded_by", Text, nullable=True),
    Index("ix_bodies_unused_uploaded_by", "uploaded_by", postgresql_where=text("expires_at IS NOT NULL")),
    Index("ix_bodies_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    Index("ix_bodies_unused_commitment", "commitment", postgresql_where=text("expires_at IS NOT NULL")),
    postgresql_partition_by="RANGE (body_id)",
)

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", Text, primary_key=True),
    _tenant_of_origin(),
    Column("question", Text, nullable=False),
    Column("allowed", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    # Canonical JSON of the input, without bodies.
    Column("input", LargeBinary, nullable=False),
    Column("policy_digest", Text, nullable=False),
    _at("decided_at", now=True),
    # Null in decisions that are older than schema 0011.
    Column("input_digest", Text, nullable=True),
    Column("result_digest", Text, nullable=True),
    # A list of strings; null where `reason` says all.
    Column("reasons", JSONB, nullable=True),
    Column("duration_us", Integer, nullable=True),
    Column("engine", Text, nullable=True),
    Column("engine_decision_id", Text, nullable=True),
    postgresql_partition_by="RANGE (decision_id)",
)

# Append only, for ever: a decision can be made again as long as its bundle is here.
policy_bundles = Table(
    "policy_bundles",
    metadata,
    Column("digest", Text, primary_key=True),
    # 0: a policy that came with a control plane. There may be several, one for each build and its settings.
    Column("version", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("comment", Text, nullable=False, server_default=text("''")),
    Column("key_id", Text, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    # Canonical JSON: path to text.
    Column("files", LargeBinary, nullable=False),
    Column("published_by", Text, nullable=False),
    _at("published_at", now=True),
    Index("uq_policy_bundles_version", "version", unique=True, postgresql_where=text("version > 0")),
)

# Append only; the highest number is in force. Two at once want the same number, and one of them gets it.
policy_activations = Table(
    "policy_activations",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    # Null: the policy that each replica came with.
    Column("digest", Text, ForeignKey("policy_bundles.digest"), nullable=True),
    # The activation whose place in history this one takes: its own, or by a rollback an earlier one's.
    Column("place", BigInteger, nullable=False),
    Column("activated_by", Text, nullable=False),
    _at("activated_at", now=True),
    CheckConstraint("number > 0 AND place >= 0 AND place <= number", name="place"),
)

# Every policy that was put in force, or has decided about an execution that a node was to run.
policies_used = Table(
    "policies_used",
    metadata,
    Column("digest", Text, primary_key=True),
    _at("first_used_at", now=True),
)

executions = Table(
    "executions",
    metadata,
    Column("execution_id", Text, primary_key=True),
    _tenant_of_origin(),
    Column("agent_id", Text, nullable=False),
    Column("agent_name", Text, nullable=False),
    Column("caller", Text, nullable=False),
    Column("template_digest", Text, nullable=False),
    Column("module_digest", Text, nullable=False),
    # Canonical JSON, copied so that a later update of the agent changes nothing here.
    Column("parameters", LargeBinary, nullable=False),
    Column("parameters_digest", Text, nullable=False),
    Column("input_body_id", Text, nullable=False),
    Column("input_commitment", Text, nullable=False),
    Column("input_bytes", BigInteger, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("seed", LargeBinary, nullable=False),
    _at("clock_start_at"),
    # Granted limits and capabilities, as deterministic agentfactory.v1 protobuf.
    Column("limits", LargeBinary, nullable=False),
    Column("capabilities", LargeBinary, nullable=False),
    Column("retry_is_safe", Boolean, nullable=False),
    Column("decision_id", Text, nullable=False),
    Column("policy_digest", Text, nullable=False),
    Column("traceparent", Text, nullable=False, server_default=text("''")),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    # The newest attempt; zero before the first.
    Column("attempt_number", Integer, nullable=False, server_default=text("0")),
    Column("fencing_token", BigInteger, nullable=False, server_default=text("0")),
    # Attempts that count against max_attempts: lost ones, not rejections of one node.
    Column("counted_attempts", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False, server_default=text("3")),
    # Nodes that rejected it for reasons of their own.
    Column("excluded_nodes", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    # After a lost attempt the next one runs alone on its node (poison input).
    Column("runs_alone", Boolean, nullable=False, server_default=text("false")),
    Column("pending_reason", Text, nullable=False, server_default=text("'QUEUED'")),
    # Not claimed before this time: the backoff of a retry. Null while an attempt is live and after the end.
    _at("claimable_at", nullable=True),
    # -1 high, 0 normal, 1 low: minutes by which it stands behind its claimable_at in its tenant's queue.
    Column("priority", SmallInteger, nullable=False, server_default=text("0")),
    _at("run_deadline_at"),
    Column("exit_code", BigInteger, nullable=True),
    Column("limit_name", Text, nullable=True),
    Column("trap", Text, nullable=True),
    Column("reason", Text, nullable=True),
    # agentfactory.v1.ResourcesUsed.
    Column("resources_used", LargeBinary, nullable=True),
    Column("receipt_id", Text, nullable=True),
    Column("output_body_id", Text, nullable=True),
    Column("output_commitment", Text, nullable=True),
    Column("output_bytes", BigInteger, nullable=True),
    Column("log_body_id", Text, nullable=True),
    Column("log_bytes", BigInteger, nullable=True),
    # What its host calls asked and were answered.
    Column("recording_body_id", Text, nullable=True),
    Column("recording_bytes", BigInteger, nullable=True),
    _at("created_at", now=True),
    _at("started_at", nullable=True),
    _at("ended_at", nullable=True),
    # When what it read and wrote was removed by order of an administrator.
    _at("erased_at", nullable=True),
    _one_of("state", EXECUTION_STATES),
    # The queue: only what waits is in it.
    Index(
        "ix_executions_queue",
        "tenant_id",
        text("((claimable_at AT TIME ZONE 'UTC'::text) + priority::double precision * '00:01:00'::interval)"),
        "execution_id",
        postgresql_where=text("claimable_at IS NOT NULL"),
    ),
    Index(
        "ix_executions_deadline", "run_deadline_at", postgresql_where=text("state IN ('pending', 'running')")
    ),
    Index("ix_executions_tenant_id_execution_id", "tenant_id", "execution_id"),
    Index("ix_executions_tenant_id_agent_name_execution_id", "tenant_id", "agent_name", "execution_id"),
)

attempts = Table(
    "attempts",
    metadata,
    _tenant_of_origin(),
    Column("execution_id", Text, nullable=False),
    Column("attempt_number", Integer, nullable=False),
    Column("fencing_token", BigInteger, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("session_epoch", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'leased'")),
    Column("order_id", Text, nullable=False),
    # What a receipt has to name; here, so that finishing does not look for the order among all partitions.
    Column("order_digest", Text, nullable=True),
    Column("receipt_id", Text, nullable=True),
    Column("reason", Text, nullable=True),
    # Committed intent of the first unsafe host call: from then on only retry_is_safe allows another attempt.
    _at("unsafe_call_at", nullable=True),
    _at("lease_expires_at"),
    _at("leased_at", now=True),
    _at("started_at", nullable=True),
    _at("ended_at", nullable=True),
    PrimaryKeyConstraint("execution_id", "fencing_token"),
    _one_of("state", ATTEMPT_STATES),
    Index(
        "ix_attempts_live_lease", "lease_expires_at", postgresql_where=text("state IN ('leased', 'running')")
    ),
    Index(
        "ix_attempts_live_node", "node_id", "boot_id", postgresql_where=text("state IN ('leased', 'running')")
    ),
)

order_batches = Table(
    "order_batches",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("envelope", LargeBinary, nullable=False),
    Column("key_id", Text, nullable=False),
    _at("created_at", now=True),
    postgresql_partition_by="RANGE (batch_id)",
)

orders = Table(
    "orders",
    metadata,
    Column("order_id", Text, primary_key=True),
    _tenant_of_origin(),
    Column("execution_id", Text, nullable=False),
    Column("fencing_token", BigInteger, nullable=False),
    Column("node_id", Text, nullable=False),
    # The exact signed leaf.
    Column("content", LargeBinary, nullable=False),
    Column("digest", Text, nullable=False),
    # The signature of the batch comes later, in order_batches. Empty where it was lost before schema 0002.
    Column("batch_id", Text, nullable=True),
    Column("leaf_index", Integer, nullable=True),
    # The path to the signed root: hashes of 32 bytes behind each other, the leaf's sibling first.
    Column("proof", LargeBinary, nullable=True),
    _at("created_at", now=True),
    # One for each attempt: both are made by one statement, and the attempt's key is unique.
    postgresql_partition_by="RANGE (order_id)",
)

receipts = Table(
    "receipts",
    metadata,
    Column("receipt_id", Text, nullable=False),
    _tenant_of_origin(),
    Column("node_id", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    # SHA-256 of the envelope: what the next receipt of the node names as its previous one.
    Column("hash", LargeBinary, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("execution_id", Text, nullable=False),
    Column("fencing_token", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    # False: evidence that changed nothing (late, fenced off, or a second answer).
    Column("accepted", Boolean, nullable=False),
    _at("received_at", now=True),
    # By its order, not by its own id: the same receipt comes to the same partition again. Each partition has
    # a unique index over (node_id, sequence), and keeps an envelope in its row (partitions.py).
    PrimaryKeyConstraint("receipt_id", "order_id"),
    postgresql_partition_by="RANGE (order_id)",
)

nodes = Table(
    "nodes",
    metadata,
    Column("node_id", Text, primary_key=True),
    _tenant(),
    Column("state", Text, nullable=False, server_default=text("'active'")),
    Column("zone", Text, nullable=False, server_default=text("''")),
    Column("receipt_key_id", Text, nullable=False),
    Column("receipt_public_key", LargeBinary, nullable=False),
    Column("certificate_serial", Text, nullable=False),
    Column("last_sequence", BigInteger, nullable=False, server_default=text("0")),
    Column("last_hash", LargeBinary, nullable=False, server_default=text("''::bytea")),
    _at("enrolled_at", now=True),
    _at("last_seen_at", nullable=True),
    _at("evicted_at", nullable=True),
    Column("duty", Text, nullable=False, server_default=text("'run'")),
    _one_of("state", ("active", "draining", "quarantined", "evicted")),
    _one_of("duty", ("run", "compile")),
)

# A view, and no part of the schema's tables: of nodes, what tenants may know of those that others enrolled.
fleet = Table(
    "fleet",
    MetaData(),
    Column("node_id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("receipt_public_key", LargeBinary, nullable=False),
    _at("evicted_at", nullable=True),
)

# A view as well: that a node was enrolled is part of what proves its receipts, whoever's executions it ran.
enrollments = Table(
    "enrollments",
    MetaData(),
    Column("audit_entry_id", Text, primary_key=True),
    Column("tenant_id", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("details", JSONB, nullable=False),
    _at("recorded_at"),
)

# The newest session of each node; `session_epoch` only grows and the newest wins.
sessions = Table(
    "sessions",
    metadata,
    Column("node_id", Text, ForeignKey("nodes.node_id"), primary_key=True),
    Column("session_epoch", BigInteger, nullable=False),
    Column("boot_id", Text, nullable=False),
    # The replica that holds the stream; empty when closed.
    Column("replica_id", Text, nullable=False, server_default=text("''")),
    Column("engine_name", Text, nullable=False),
    Column("engine_version", Text, nullable=False),
    Column("engine_config_digest", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("free_slots", Integer, nullable=False),
    # Walls around its workers, as its Hello said: a list of {name, active, detail}.
    Column("sandbox_layers", JSONB, nullable=False, server_default=text("'[]'")),
    _at("started_at", now=True),
    _at("last_heartbeat_at", now=True),
    # The newest checkpoint of the log that the node has verified, and why it takes no orders for its sake.
    Column("log_size", BigInteger, nullable=False, server_default=text("0")),
    Column("log_root", LargeBinary, nullable=False, server_default=text("''::bytea")),
    Column("log_problem", Text, nullable=False, server_default=text("''")),
)

enrollment_tokens = Table(
    "enrollment_tokens",
    metadata,
    Column("token_hash", Text, primary_key=True),
    _tenant(),
    Column("zone", Text, nullable=False, server_default=text("''")),
    Column("created_by", Text, nullable=False),
    _at("created_at", now=True),
    _at("expires_at"),
    # Set by the last use.
    _at("used_at", nullable=True),
    # The newest node that it enrolled.
    Column("node_id", Text, nullable=True),
    Column("max_uses", Integer, nullable=False, server_default=text("1")),
    Column("uses", Integer, nullable=False, server_default=text("0")),
    Column("duty", Text, nullable=False, server_default=text("'run'")),
    _one_of("duty", ("run", "compile")),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _tenant_of_origin(),
    Column("caller", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    # HMAC-SHA256 of the request under `hmac_key`, which is erased with the body.
    Column("hmac_key", LargeBinary, nullable=False),
    Column("request_hmac", LargeBinary, nullable=False),
    Column("execution_id", Text, nullable=False),
    _at("created_at", now=True),
    PrimaryKeyConstraint("tenant_id", "caller", "method", "request_id"),
    Index("ix_idempotency_keys_created_at", "created_at"),
)

# Append only: the service role has INSERT and SELECT here, nothing else.
audit_entries = Table(
    "audit_entries",
    metadata,
    Column("audit_entry_id", Text, nullable=False),
    _tenant_of_origin(),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("result", Text, nullable=False, server_default=text("'ok'")),
    Column("details", JSONB, nullable=False, server_default=text("'{}'")),
    _at("recorded_at", now=True),
    # Watchers read by transaction, oldest first, below the oldest open one: ids become visible out of order.
    Column(
        "recorded_in", BigInteger, nullable=False, server_default=text("(pg_current_xact_id()::text)::bigint")
    ),
    PrimaryKeyConstraint("tenant_id", "audit_entry_id"),
    Index("ix_audit_entries_watch", "tenant_id", "recorded_in", "audit_entry_id"),
    Index("ix_audit_entries_tenant_id_subject", "tenant_id", "subject"),
    Index("ix_audit_entries_actor", "tenant_id", "actor", "audit_entry_id"),
    # The action by bytes (COLLATE "C").
    Index("ix_audit_entries_action", "tenant_id", "action", "audit_entry_id"),
    Index(
        "ix_audit_entries_refused",
        "tenant_id",
        "audit_entry_id",
        "result",
        postgresql_where=text("result <> 'ok'"),
    ),
    postgresql_partition_by="RANGE (audit_entry_id)",
)

# What the transparency log integrates next: a row for each statement that recorded something, by triggers.
log_pending = Table(
    "log_pending",
    metadata,
    Column("log_pending_id", BigInteger, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("tenant_ids", ARRAY(Text), nullable=False),
    Column("subjects", ARRAY(Text), nullable=False),
    # SHA-256 of what each of them says.
    Column("contents", ARRAY(LargeBinary), nullable=False),
    _at("created_at", now=True),
)

log_entries = Table(
    "log_entries",
    metadata,
    Column("log_index", BigInteger, primary_key=True, autoincrement=False),
    _tenant_of_origin(),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    # The leaf's data: binds kind, subject, salt and content.
    Column("commitment", LargeBinary, nullable=False),
    UniqueConstraint("subject"),
    Index("ix_log_entries_tenant_id_log_index", "tenant_id", "log_index"),
)

# How far the numbers of a node's receipts were looked at, which are missing, up to which retention dropped.
receipt_marks = Table(
    "receipt_marks",
    metadata,
    Column("node_id", Text, primary_key=True),
    Column("checked_to", BigInteger, nullable=False, server_default=text("0")),
    Column("missing", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),
    Column("dropped_to", BigInteger, nullable=False, server_default=text("0")),
)

# 256 hashes each (C2SP tlog-tiles), the last of a level fewer.
log_tiles = Table(
    "log_tiles",
    metadata,
    Column("level", SmallInteger, nullable=False),
    Column("tile_index", BigInteger, nullable=False),
    Column("hashes", LargeBinary, nullable=False),
    PrimaryKeyConstraint("level", "tile_index"),
)

log_head = Table(
    "log_head",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("tree_size", BigInteger, nullable=False),
    Column("root", LargeBinary, nullable=False),
    _at("integrated_at", now=True),
    CheckConstraint("singleton", name="singleton"),
)

# Signed notes of committed heads.
log_checkpoints = Table(
    "log_checkpoints",
    metadata,
    Column("tree_size", BigInteger, primary_key=True, autoincrement=False),
    Column("note", LargeBinary, nullable=False),
    _at("signed_at", now=True),
)

# Those of earlier epochs, before a restore: the same leaves under another origin.
log_past_checkpoints = Table(
    "log_past_checkpoints",
    metadata,
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("tree_size", BigInteger, primary_key=True, autoincrement=False),
    Column("note", LargeBinary, nullable=False),
    _at("signed_at"),
)

# Archives that were made and not removed since. The service reads the time of the newest alone.
backups = Table(
    "backups",
    metadata,
    Column("backup_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    # Folder or bucket.
    Column("place", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    _at("snapshot_at"),
    _at("finished_at", now=True),
)

# Of witnesses, as signature lines of a note.
log_cosignatures = Table(
    "log_cosignatures",
    metadata,
    Column("origin", Text, nullable=False),
    Column("tree_size", BigInteger, nullable=False),
    # Name and key id.
    Column("witness", Text, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("cosigned_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("origin", "tree_size", "witness"),
)

log_witnesses = Table(
    "log_witnesses",
    metadata,
    Column("origin", Text, nullable=False),
    Column("witness", Text, nullable=False),
    # The largest head that it is known to have seen.
    Column("tree_size", BigInteger, nullable=False, server_default=text("0")),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    _at("next_at", now=True),
    # Until then somebody asks, or nobody needs to.
    _at("round_until", now=True),
    Column("cosigned_at", DateTime(timezone=True)),
    # What it saw that the log is not; signing stops.
    Column("fork", Text, nullable=False, server_default=text("''")),
    Column("forked_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("origin", "witness"),
)
