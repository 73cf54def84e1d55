"""The node's settings, from `AF_NODE_…`, `agentfactory.toml` and the command line. Nothing else reads any."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from data_plane.host_calls.addresses import parse_networks
from data_plane.host_calls.http_fetch import AllowedHttp, HttpPolicy
from data_plane.host_calls.llm import LlmEndpoint, Prices
from data_plane.host_calls.llm_complete import LlmPolicy
from data_plane.orders.log_check import LogRequire
from data_plane.sandbox.domain import Layer
from shared.errors import HostCallRefusedError
from shared.limits import LIMIT_FIELDS, MAX_LIMITS, Limits
from shared.logs import LogStyle
from shared.manifest import MAX_LLM_TOKENS, SECRET_NAME, Profile
from shared.paths import NodePaths
from shared.settings import Plane, PlaneSettings, TracedSettings, default_data_dir
from shared.urls import Url, parse_url

GIBIBYTE: Final = 1024**3
MIBIBYTE: Final = 1024**2
MAX_SLOTS: Final = 4096


def _known_level(value: str) -> str:
    if value.lower() not in {"debug", "info", "warning", "error", "critical"}:
        raise ValueError("must be debug, info, warning, error or critical")
    return value.lower()


LogLevel = Annotated[str, AfterValidator(_known_level)]
Target = Annotated[str, Field(pattern=r"^[A-Za-z0-9.\[\]:_-]+:\d{1,5}$", max_length=256)]


class LlmPriceSettings(BaseModel):
    """What a model costs, in millionths of the operator's currency for a million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_micros: int = Field(default=0, ge=0, le=1_000_000_000_000)
    answer_micros: int = Field(default=0, ge=0, le=1_000_000_000_000)


class LlmEndpointSettings(BaseModel):
    """A server of language models that speaks the chat completions of OpenAI."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(max_length=2048)
    """Up to `/v1/`; `chat/completions` comes behind it."""
    models: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$")], LlmPriceSettings
    ] = Field(min_length=1, max_length=256)
    secret: str | None = Field(default=None, pattern=rf"^{SECRET_NAME.pattern}$", max_length=63)
    """Name of its key among the node's secrets."""
    key_of: Literal["operator", "tenant"] = "operator"
    """Whose secret it is: that of `_operator`, or one of the tenant that runs."""
    timeout_s: float = Field(default=60, gt=0, le=600)
    answer_bound: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field in which the server is told how long its answer may be."""

    @model_validator(mode="after")
    def _keeps_its_key(self) -> "LlmEndpointSettings":
        try:
            url = self._completions
        except HostCallRefusedError as error:
            raise ValueError(f"url: {error}") from error
        address = url.address
        is_here = address is not None and address.is_loopback
        if self.secret is not None and url.scheme != "https" and not is_here:
            raise ValueError("its key would travel in clear: use https, or an address of loopback")
        return self

    @property
    def _completions(self) -> Url:
        return parse_url(f"{self.url.removesuffix('/')}/chat/completions")

    @property
    def endpoint(self) -> LlmEndpoint:
        """The endpoint as host calls know it."""
        return LlmEndpoint(
            url=self._completions,
            models={
                name: Prices(prompt=price.prompt_micros, answer=price.answer_micros)
                for name, price in self.models.items()
            },
            secret=self.secret,
            is_key_of_tenant=self.key_of == "tenant",
            timeout=timedelta(seconds=self.timeout_s),
            bound_field=self.answer_bound,
        )


class NodeSettings(TracedSettings):
    """How one node runs. Paths are below `data_dir` unless named."""

    plane: ClassVar[Plane] = Plane.NODE

    data_dir: Path = Field(default_factory=lambda: default_data_dir() / "node")
    """Identity, spool and artifacts; one process uses it at a time."""
    control_planes: tuple[Target, ...] = Field(default=("localhost:7443",), min_length=1, max_length=16)
    """``host:port`` of replicas, asked in turn."""
    zone: str = Field(default="", max_length=63)
    slots: int = Field(default_factory=lambda: max(1, os.cpu_count() or 1), ge=1, le=MAX_SLOTS)
    """Guests that run at once."""
    queue: int = Field(default=128, ge=0, le=MAX_SLOTS)
    """Orders that may wait here for a slot; fewer when guests run long, none from 100 ms on."""
    max_warm_workers: int | None = Field(default=None, ge=1, le=4 * MAX_SLOTS)
    """Loaded sandbox workers that are kept; by default four per slot."""

    sandbox_require: tuple[Layer, ...] = (Layer.SECCOMP, Layer.RLIMITS, Layer.NO_NEW_PRIVS)
    """Layers of the jail without which the node does not start and no worker works."""

    accept_compiled_artifacts: bool = False
    """Whether machine code is loaded that another machine made, if a compiler key of the keyset vouches for
    it (docs/operations.md); otherwise, and whenever there is none that counts, modules are compiled here."""

    cache_bytes: int = Field(default=4 * GIBIBYTE, ge=MIBIBYTE)
    """Bound of the artifact cache on disk."""
    spool_bytes: int = Field(default=GIBIBYTE, ge=64 * MIBIBYTE)
    """Bound of the receipt spool on disk."""

    profiles: tuple[Profile, ...] = Field(default=tuple(Profile), min_length=1)
    """Profiles that this node offers."""
    max_wall_ms: int = Field(default=MAX_LIMITS.wall_ms, ge=1, le=MAX_LIMITS.wall_ms)
    max_cpu_ms: int = Field(default=MAX_LIMITS.cpu_ms, ge=1, le=MAX_LIMITS.cpu_ms)
    max_memory_bytes: int = Field(default=MAX_LIMITS.memory_bytes, ge=65536, le=MAX_LIMITS.memory_bytes)
    max_output_bytes: int = Field(default=MAX_LIMITS.output_bytes, ge=1, le=MAX_LIMITS.output_bytes)
    max_log_bytes: int = Field(default=MAX_LIMITS.log_bytes, ge=1, le=MAX_LIMITS.log_bytes)
    max_open_files: int = Field(default=MAX_LIMITS.open_files, ge=1, le=MAX_LIMITS.open_files)
    max_fuel: int = Field(default=MAX_LIMITS.fuel, ge=1, le=MAX_LIMITS.fuel)
    max_table_elements: int = Field(default=MAX_LIMITS.table_elements, ge=0, le=MAX_LIMITS.table_elements)
    max_log_lines: int = Field(default=MAX_LIMITS.log_lines, ge=0, le=MAX_LIMITS.log_lines)
    max_scratch_bytes: int = Field(default=MAX_LIMITS.scratch_bytes, ge=0, le=MAX_LIMITS.scratch_bytes)
    max_scratch_inodes: int = Field(default=MAX_LIMITS.scratch_inodes, ge=0, le=MAX_LIMITS.scratch_inodes)
    max_random_bytes: int = Field(default=MAX_LIMITS.random_bytes, ge=0, le=MAX_LIMITS.random_bytes)
    max_host_calls: int = Field(default=MAX_LIMITS.host_calls, ge=0, le=MAX_LIMITS.host_calls)
    max_host_call_bytes: int = Field(default=MAX_LIMITS.host_call_bytes, ge=0, le=MAX_LIMITS.host_call_bytes)
    max_host_call_ms: int = Field(default=MAX_LIMITS.host_call_ms, ge=0, le=MAX_LIMITS.host_call_ms)

    allowed_http: tuple[str, ...] = Field(default=(), max_length=1024)
    """`METHOD URL`, or `* URL`: what guests of this node may call, each with all that is below it."""
    allowed_networks: tuple[str, ...] = Field(default=(), max_length=64)
    """In CIDR notation: what calls may reach beside public addresses, if their template names it too."""
    secrets_file: Path | None = None
    """Secrets of tenants for headers of such calls: mode 0600, see docs/operations.md."""
    vault_url: str = Field(default="", max_length=512)
    """https://host:8200 of the Vault or OpenBao that holds such secrets; instead of a file."""
    vault_ca_file: Path | None = None
    """Certificates that the vault's is checked against instead of the system's."""
    vault_namespace: str | None = Field(default=None, max_length=256)
    vault_role_id: str = Field(default="", max_length=256)
    """AppRole that logs in there."""
    vault_secret_id_file: Path | None = None
    """Mode 0600; read at each login."""
    vault_approle_mount: str = Field(default="approle", min_length=1, max_length=128)
    vault_kv_mount: str = Field(default="secret", min_length=1, max_length=128)
    """Where the key-value engine, version 2, is mounted."""
    vault_kv_prefix: str = Field(
        default="agentfactory", pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=256
    )
    vault_timeout_s: float = Field(default=3, gt=0, le=60)
    http_ca_file: Path | None = None
    """Certificates that such calls trust instead of the system's."""
    llm_endpoints: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")], LlmEndpointSettings] = (
        Field(default_factory=dict, max_length=64)
    )
    """By the name before the slash of a model, see docs/llm.md."""
    max_llm_tokens: int | None = Field(default=None, ge=1, le=MAX_LLM_TOKENS)
    """Of one run, whatever its order grants."""
    policy_file: Path | None = None
    """Rego that decides which valid orders this node runs (docs/policy.md); without it all of them."""
    policy_data_file: Path | None = None
    """JSON that it finds below ``data``."""
    quarantine_crashes: int = Field(default=3, ge=1, le=1000)
    """So many workers may a module crash within the window; then it is refused for a while."""
    quarantine_window_s: float = Field(default=300, gt=0, le=86_400)
    quarantine_for_s: float = Field(default=600, gt=0, le=86_400)

    max_order_life_s: float = Field(default=60, gt=0, le=60)
    max_skew_s: float = Field(default=30, ge=0, le=30)
    """How far the control plane's clock may be off in an order's times."""

    max_staleness_s: float = Field(default=60, ge=5, le=3600)
    """Age of the last statement of freshness beyond which no order is taken, if the keyset asks for them."""

    log_require: LogRequire = LogRequire.ALWAYS
    """Whether template and policy of an order have to be in the transparency log: ``always``; ``when_given``
    while the control plane is older than this node or its log has no key; ``off``."""
    max_log_age_s: float = Field(default=60, ge=3, le=3600)
    """Age of the newest checkpoint of the log beyond which no order is taken."""

    drain_timeout_s: float = Field(default=25, ge=0, le=3600)
    """How long running guests may go on after SIGTERM before they are stopped."""
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=7454, ge=0, le=65535)
    """`/metrics /healthz /readyz`; 0 takes any free port."""
    log_level: LogLevel = "info"
    log_style: LogStyle = LogStyle.JSON

    @field_validator("allowed_http")
    @classmethod
    def _readable_http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            try:
                AllowedHttp.parse(entry)
            except (ValueError, HostCallRefusedError) as error:
                raise ValueError(
                    f"{entry[:200]!r} is not METHOD URL, such as GET https://a.test/v1/"
                ) from error
        return value

    @field_validator("allowed_networks")
    @classmethod
    def _readable_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_networks(value)
        return value

    @property
    def http_policy(self) -> HttpPolicy:
        """What host calls of this node may reach."""
        return HttpPolicy(
            allowed=tuple(map(AllowedHttp.parse, self.allowed_http)),
            networks=parse_networks(self.allowed_networks),
        )

    @property
    def llm_policy(self) -> LlmPolicy:
        """What `llm.complete` of this node may reach."""
        return LlmPolicy(
            endpoints={name: one.endpoint for name, one in self.llm_endpoints.items()},
            networks=parse_networks(self.allowed_networks),
            max_tokens=self.max_llm_tokens,
        )

    @property
    def paths(self) -> NodePaths:
        """Where this node's files are."""
        return NodePaths(data_dir=self.data_dir)

    @property
    def ceilings(self) -> Limits:
        """The most that this node grants any guest."""
        return Limits(**{name: getattr(self, f"max_{name}") for name in LIMIT_FIELDS})


class CompilerSettings(PlaneSettings):
    """How a node runs that compiles modules for others. Paths are below `data_dir` unless named."""

    plane: ClassVar[Plane] = Plane.COMPILER

    data_dir: Path = Field(default_factory=lambda: default_data_dir() / "compiler")
    """Identity and keyset; one process uses it at a time."""
    control_planes: tuple[Target, ...] = Field(default=("localhost:7443",), min_length=1, max_length=16)
    """``host:port`` of replicas; the next one after a failure."""
    zone: str = Field(default="", max_length=63)
    key_file: Path | None = None
    """The private compiler key, mode 0600; by default `compiler.key` in `data_dir`."""
    profiles: tuple[Profile, ...] = Field(default=tuple(Profile), min_length=1)
    """Profiles that modules are compiled for."""
    poll_s: float = Field(default=2, gt=0, le=3600)
    """Between two looks for work when there was none."""
    sandbox_require: tuple[Layer, ...] = (Layer.SECCOMP, Layer.RLIMITS, Layer.NO_NEW_PRIVS)
    """Layers of the jail without which nothing is compiled."""
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=7474, ge=0, le=65535)
    """`/metrics /healthz /readyz`; 0 takes any free port."""
    log_level: LogLevel = "info"
    log_style: LogStyle = LogStyle.JSON

    @property
    def paths(self) -> NodePaths:
        """Where this node's files are."""
        return NodePaths(data_dir=self.data_dir)

    @property
    def compiler_key(self) -> Path:
        """Where the private compiler key is."""
        return self.key_file or self.data_dir / "compiler.key"

    @property
    def poll(self) -> timedelta:
        """Between two looks for work."""
        return timedelta(seconds=self.poll_s)
