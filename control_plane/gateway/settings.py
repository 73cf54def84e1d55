"""Settings of the gateway: AF_GATEWAY_… over table [gateway] of agentfactory.toml. The only reader."""

import ipaddress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from shared.logs import LogStyle
from shared.paths import InstallationPaths
from shared.settings import Plane, TracedSettings, default_data_dir

_SECOND: Final = timedelta(seconds=1)
_KIBIBYTE: Final = 1024
_MEBIBYTE: Final = 1024 * _KIBIBYTE

Target = Annotated[str, Field(pattern=r"^[A-Za-z0-9.\[\]:/_-]+:\d{1,5}$", max_length=256)]


class GatewaySettings(TracedSettings):
    """What one gateway may be told."""

    plane: ClassVar[Plane] = Plane.GATEWAY

    data_dir: Path = Field(
        default_factory=default_data_dir, description="Where the authority's certificate lies unless named."
    )
    authority: Path | None = Field(
        default=None, description="Certificate (PEM) that the control plane's must be issued by."
    )
    control_plane: Target = Field(
        default="localhost:7445",
        description="host:port of the control plane's port for tokens; a name with several addresses is "
        "used in turn.",
    )
    name: str = Field(
        default="gateway", pattern=r"^[a-z0-9][a-z0-9.-]{0,47}$", description="What audit entries call it."
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="Address that HTTP listens on.")
    port: int = Field(default=8080, ge=0, le=65535, description="HTTP, or HTTPS with a certificate; 0: any.")
    admin_host: str = Field(default="127.0.0.1", min_length=1)
    admin_port: int = Field(default=7464, ge=0, le=65535, description="/metrics /healthz /readyz")
    certificate: Path | None = Field(default=None, description="PEM, leaf first: serve HTTPS.")
    key: Path | None = Field(default=None, description="Its key, PEM, mode 0600.")
    plaintext: Literal["loopback", "behind-proxy"] = Field(
        default="loopback",
        description="Where HTTP without TLS is served: on loopback only, or anywhere, "
        "because a proxy in front ends TLS.",
    )

    max_requests: int = Field(default=1024, ge=1, le=65536, description="Requests under way.")
    max_calls: int = Field(
        default=256,
        ge=16,
        le=65536,
        description="RPCs under way, of which each tenant gets a share: each replica of the control plane "
        "takes 256 of one gateway.",
    )
    max_streams: int = Field(default=256, ge=1, le=65536, description="Event streams among them.")
    max_connections: int = Field(default=2048, ge=1, le=65536)
    max_head_bytes: int = Field(
        default=16 * _KIBIBYTE, ge=4 * _KIBIBYTE, le=64 * _KIBIBYTE, description="Request line and headers."
    )
    max_json_bytes: int = Field(default=2 * _MEBIBYTE, ge=_KIBIBYTE, le=6 * _MEBIBYTE)
    max_upload_bytes: int = Field(default=66 * _MEBIBYTE, ge=_KIBIBYTE, le=1024 * _MEBIBYTE)
    head_timeout: timedelta = Field(default=10 * _SECOND, gt=timedelta(0), le=60 * _SECOND)
    read_timeout: timedelta = Field(
        default=30 * _SECOND,
        gt=timedelta(0),
        le=600 * _SECOND,
        description="For a whole JSON body, and for each piece of an upload.",
    )
    write_timeout: timedelta = Field(
        default=60 * _SECOND, gt=timedelta(0), le=600 * _SECOND, description="Until a reader takes a piece."
    )
    heartbeat_every: timedelta = Field(
        default=15 * _SECOND,
        ge=timedelta(milliseconds=100),
        le=120 * _SECOND,
        description="On event streams.",
    )
    stop_grace: timedelta = Field(
        default=10 * _SECOND, ge=timedelta(0), le=timedelta(minutes=5), description="For requests under way."
    )

    trace_ratio: float = Field(
        default=0.01, ge=0, le=1, description="Of the traces that begin here; with an otlp_endpoint."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_style: LogStyle = LogStyle.JSON

    @property
    def authority_file(self) -> Path:
        """The certificate that the control plane's must be issued by."""
        return self.authority or InstallationPaths(data_dir=self.data_dir).ca_certificate

    @model_validator(mode="after")
    def _tokens_never_travel_in_clear(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        if self.certificate is None and self.plaintext == "loopback" and not _is_loopback(self.host):
            raise ValueError(
                f"{self.host} is no loopback address and tokens would travel in clear: set certificate and "
                "key, or plaintext = behind-proxy where a proxy ends TLS"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
