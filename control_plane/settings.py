"""Settings of the control plane: AF_CONTROL_… over table [control] of agentfactory.toml. The only reader."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr

from control_plane.kv.domain import DEFAULT_QUOTA
from shared.logs import LogStyle
from shared.orders import MAX_LEASE
from shared.settings import Plane, PlaneSettings, default_data_dir

_SECOND = timedelta(seconds=1)

AllowedHttp = Annotated[str, Field(pattern=r"^(\*|[A-Z]+) https?://[!-~]+$", max_length=2080)]


class ControlSettings(PlaneSettings):
    """What one replica may be told."""

    plane: ClassVar[Plane] = Plane.CONTROL

    data_dir: Path = Field(default_factory=default_data_dir, description="Keys, certificates, keyset.")
    database_url: SecretStr = Field(
        description="postgresql://user:password@host:5432/database, as the service's role."
    )
    database_connections: int = Field(default=16, ge=4, le=256)
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
    kv_max_keys: int = Field(
        default=DEFAULT_QUOTA.max_keys, ge=1, le=1_000_000, description="Keys that one agent may keep."
    )
    kv_max_bytes: int = Field(
        default=DEFAULT_QUOTA.max_bytes,
        ge=1,
        le=16 * 1024**3,
        description="Keys and values of one agent together.",
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

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_style: LogStyle = LogStyle.JSON
