"""Settings of the control plane: AF_CONTROL_… over table [control] of agentfactory.toml. The only reader."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from control_plane.access.domain import MAX_TOKEN_LIFE, is_trusted_url
from control_plane.kv.domain import DEFAULT_QUOTA
from shared.checkpoints import parse_verifier_key
from shared.errors import AgentFactoryError
from shared.local_tokens import ISSUER_NAME
from shared.logs import LogStyle
from shared.orders import MAX_LEASE
from shared.settings import Plane, TracedSettings, default_data_dir

_SECOND = timedelta(seconds=1)

AllowedHttp = Annotated[str, Field(pattern=r"^(\*|[A-Z]+) https?://[!-~]+$", max_length=2080)]

AllowedLlm = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}/(\*|[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127})$", max_length=192)
]

OpaUrl = Annotated[str, Field(pattern=r"^https?://[!-~]+$", max_length=2048)]


TrustedUrl = Annotated[str, Field(max_length=2048)]


class TokenIssuerSettings(BaseModel):
    """One issuer whose tokens count. Its keys: by discovery, unless a URL or a file is named."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,31}$", description="Stands in identities: oidc:NAME/…")
    issuer: str = Field(min_length=1, max_length=2048, description="iss of its tokens, to the letter.")
    audience: str = Field(min_length=1, max_length=2048, description="aud that its tokens must name.")
    algorithms: tuple[Literal["RS256", "ES256", "EdDSA"], ...] = Field(min_length=1, max_length=3)
    groups_claim: str = Field(default="groups", min_length=1, max_length=128)
    jwks_url: TrustedUrl | None = None
    jwks_file: Path | None = None
    ca_file: Path | None = Field(default=None, description="PEM of the authority of its web server.")
    max_life: timedelta = Field(default=MAX_TOKEN_LIFE, gt=timedelta(0), le=MAX_TOKEN_LIFE)
    keys_max_age: timedelta = Field(
        default=timedelta(hours=1),
        ge=timedelta(minutes=1),
        le=timedelta(days=7),
        description="How long known keys count while the issuer does not answer.",
    )

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name == ISSUER_NAME:
            raise ValueError(f"{ISSUER_NAME!r} is the installation's own issuer")
        return name

    @field_validator("jwks_url")
    @classmethod
    def _trusted(cls, url: str | None) -> str | None:
        if url is not None and not is_trusted_url(url):
            raise ValueError("needs https, except on this machine")
        return url


class WitnessSettings(BaseModel):
    """One witness that cosigns checkpoints of the log (C2SP tlog-witness)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: TrustedUrl = Field(description="Where /add-checkpoint is below.")
    key: str = Field(min_length=1, max_length=400, description="Its verifier key: NAME+ID+BASE64.")

    @field_validator("url")
    @classmethod
    def _trusted(cls, url: str) -> str:
        if not is_trusted_url(url):
            raise ValueError("needs https, except on this machine")
        return url

    @field_validator("key")
    @classmethod
    def _verifier_key(cls, key: str) -> str:
        try:
            parse_verifier_key(key)
        except AgentFactoryError as error:
            raise ValueError(str(error)) from error
        return key


class ControlSettings(TracedSettings):
    """What one replica may be told."""

    plane: ClassVar[Plane] = Plane.CONTROL

    data_dir: Path = Field(default_factory=default_data_dir, description="Keys, certificates, keyset.")
    database_url: SecretStr = Field(
        description="postgresql://user:password@host:5432/database, as the service's role."
    )
    database_connections: int = Field(default=8, ge=4, le=256)
    database_wait: timedelta = Field(default=2 * _SECOND, gt=timedelta(0), le=60 * _SECOND)

    host: str = Field(default="127.0.0.1", min_length=1, description="Address that gRPC listens on.")
    port: int = Field(default=7443, ge=0, le=65535, description="gRPC with client certificates; 0: any.")
    enroll_port: int = Field(default=7445, ge=0, le=65535, description="gRPC without them: enrollment.")
    admin_host: str = Field(default="127.0.0.1", min_length=1)
    admin_port: int = Field(default=7444, ge=0, le=65535, description="/metrics /healthz /readyz")

    replica_id: str = Field(default="", max_length=64, description="Empty: a random one per start.")
    zone: str = Field(default="", max_length=63)
    heartbeat_every: timedelta = Field(default=_SECOND, ge=timedelta(milliseconds=100), le=10 * _SECOND)
    lease: timedelta = Field(default=4 * _SECOND, ge=timedelta(milliseconds=300), le=MAX_LEASE)
    order_life: timedelta = Field(default=60 * _SECOND, gt=timedelta(0), le=60 * _SECOND)
    max_session_age: timedelta = Field(default=timedelta(minutes=10), ge=_SECOND, le=timedelta(hours=12))
    default_run_deadline: timedelta = Field(
        default=timedelta(minutes=10), gt=timedelta(0), le=timedelta(hours=24)
    )
    max_pending: int = Field(
        default=100_000, ge=1, le=1_000_000, description="Executions that wait for a node, of all tenants."
    )
    max_pending_per_tenant: int = Field(
        default=20_000, ge=1, le=1_000_000, description="Executions that wait for a node, of one tenant."
    )
    max_per_minute_per_tenant: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Executions accepted of one tenant; absent: any number."
    )
    allowed_http: tuple[AllowedHttp, ...] = Field(
        default=(),
        max_length=1024,
        description="METHOD URL, or * URL: what agents may call, with all that is below it.",
    )
    allowed_llm: tuple[AllowedLlm, ...] = Field(
        default=(),
        max_length=1024,
        description="ENDPOINT/MODEL, or ENDPOINT/*: language models that agents may ask.",
    )
    llm_tokens_per_day: int | None = Field(
        default=None, ge=1, le=10**15, description="Of language models, of one tenant; absent: any number."
    )
    llm_cost_micros_per_day: int | None = Field(
        default=None, ge=1, le=10**15, description="As above, in millionths of the operator's currency."
    )
    opa_urls: tuple[OpaUrl, ...] = Field(
        default=(), max_length=16, description="OPA servers that decide; none: the engine in this process."
    )
    opa_token_file: Path | None = Field(default=None, description="Bearer token for them.")
    opa_ca_file: Path | None = Field(default=None, description="Who signed their certificates; PEM.")
    opa_timeout: timedelta = Field(
        default=timedelta(milliseconds=200),
        ge=timedelta(milliseconds=10),
        le=10 * _SECOND,
        description="For one decision; without an answer until then it is denied.",
    )
    kv_max_keys: int = Field(
        default=DEFAULT_QUOTA.max_keys, ge=1, le=1_000_000, description="Keys that one agent may keep."
    )
    kv_max_bytes: int = Field(
        default=DEFAULT_QUOTA.max_bytes,
        ge=1,
        le=16 * 1024**3,
        description="Keys and values of one agent together.",
    )
    max_compiled_bytes: int = Field(
        default=8 * 1024**3,
        ge=1024**2,
        le=1024**5,
        description="What compiling nodes made of modules, all of it together.",
    )
    token_issuers: tuple[TokenIssuerSettings, ...] = Field(
        default=(), max_length=16, description="Whose bearer tokens count, beside the installation's own."
    )
    custody: Literal["files", "vault"] = Field(
        default="files", description="Who keeps private keys: files of the data folder, or a vault's transit."
    )
    vault_url: str = Field(default="", max_length=512, description="https://host:8200 of Vault or OpenBao.")
    vault_ca_file: Path | None = Field(default=None, description="Trusted there instead of the system's.")
    vault_namespace: str | None = Field(default=None, max_length=256)
    vault_role_id: str = Field(default="", max_length=256, description="AppRole that logs in.")
    vault_secret_id_file: Path | None = Field(default=None, description="Mode 0600; read at each login.")
    vault_approle_mount: str = Field(default="approle", min_length=1, max_length=128)
    vault_transit_mount: str = Field(default="transit", min_length=1, max_length=128)
    vault_key_prefix: str = Field(default="agentfactory", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    vault_timeout: timedelta = Field(default=3 * _SECOND, gt=timedelta(0), le=60 * _SECOND)

    body_key_life: timedelta = Field(
        default=timedelta(minutes=5),
        ge=10 * _SECOND,
        le=timedelta(hours=1),
        description="How long keys of tenants' bodies serve new inputs while their custodian is away.",
    )

    log_witnesses: tuple[WitnessSettings, ...] = Field(
        default=(), max_length=16, description="Who cosigns the checkpoints of the log."
    )
    log_witness_quorum: int = Field(
        default=0,
        ge=0,
        le=16,
        description="So many cosignatures make a checkpoint a witnessed one; 0: none is.",
    )
    log_witness_every: timedelta = Field(
        default=5 * _SECOND, ge=timedelta(milliseconds=100), le=timedelta(hours=1)
    )
    log_witness_timeout: timedelta = Field(default=5 * _SECOND, gt=timedelta(0), le=60 * _SECOND)
    log_witness_ca_file: Path | None = Field(
        default=None, description="PEM; trusted for witnesses instead of the system's."
    )

    metrics_tenants: int = Field(
        default=50,
        ge=0,
        le=1000,
        description="So many tenants have metrics of their own, those after them share one; 0: none.",
    )

    cache_life: timedelta = Field(
        default=timedelta(minutes=10),
        gt=timedelta(0),
        le=timedelta(hours=1),
        description="How long templates and agents are believed when no change of them is announced.",
    )
    stop_grace: timedelta = Field(
        default=10 * _SECOND, ge=timedelta(0), le=timedelta(minutes=5), description="For RPCs in flight."
    )

    trace_ratio: float = Field(
        default=0.01, ge=0, le=1, description="Of the traces that begin here; with an otlp_endpoint."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_style: LogStyle = LogStyle.JSON

    @model_validator(mode="after")
    def _quorum_is_possible(self) -> Self:
        if self.log_witness_quorum > len(self.log_witnesses):
            raise ValueError(
                f"log_witness_quorum is {self.log_witness_quorum} of {len(self.log_witnesses)} log_witnesses"
            )
        if len({witness.key.partition("+")[0] for witness in self.log_witnesses}) != len(self.log_witnesses):
            raise ValueError("two log_witnesses have one name")
        return self
