"""Where the files of an installation and of a node lie below the data directory. Reads and writes none."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationPaths:
    """The control plane's data directory, written by `agentfactory init`."""

    data_dir: Path

    @property
    def description(self) -> Path:
        """Name of the installation and the ids of its keys, as JSON."""
        return self.data_dir / "installation.json"

    @property
    def root_key(self) -> Path:
        """Private root key: signs keysets. `up` keeps it here; elsewhere it belongs offline."""
        return self.data_dir / "keys" / "root.key"

    @property
    def root_public_key(self) -> Path:
        return self.data_dir / "keys" / "root.pub"

    @property
    def order_key(self) -> Path:
        return self.data_dir / "keys" / "order.key"

    @property
    def policy_key(self) -> Path:
        return self.data_dir / "keys" / "policy.key"

    @property
    def token_key(self) -> Path:
        """Private key of the local issuer of tokens."""
        return self.data_dir / "keys" / "token.key"

    @property
    def token_keys(self) -> Path:
        """Public keys of the local issuer, a JWK set."""
        return self.data_dir / "token-keys.json"

    @property
    def token(self) -> Path:
        """The token that `up` issues to whoever may read the data folder."""
        return self.data_dir / "token"

    @property
    def log_key(self) -> Path:
        return self.data_dir / "keys" / "log.key"

    @property
    def ca_key(self) -> Path:
        return self.data_dir / "keys" / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        return self.data_dir / "ca.crt"

    @property
    def next_ca_key(self) -> Path:
        """Of the authority that is about to take the place of the one in use."""
        return self.data_dir / "keys" / "ca-next.key"

    @property
    def next_ca_certificate(self) -> Path:
        return self.data_dir / "ca-next.crt"

    @property
    def retiring_ca_key(self) -> Path:
        """Of the authority that was replaced last."""
        return self.data_dir / "keys" / "ca-retiring.key"

    @property
    def retiring_ca_certificate(self) -> Path:
        return self.data_dir / "ca-retiring.crt"

    @property
    def server_certificate(self) -> Path:
        """Leaf and authority, PEM."""
        return self.data_dir / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.data_dir / "server.key"

    @property
    def keyset(self) -> Path:
        """The newest keyset, DSSE envelope; a copy of what the database holds."""
        return self.data_dir / "keyset.dsse"

    @property
    def publisher_key(self) -> Path:
        """Private key of the publisher that `agentfactory keys init` makes on this machine."""
        return self.data_dir / "publisher.key"

    @property
    def publisher_public_key(self) -> Path:
        return self.data_dir / "publisher.pub"

    @property
    def trust(self) -> Path:
        """What nodes pin (`shared/trust.py`): to be copied to every node by whoever sets it up."""
        return self.data_dir / "trust.json"

    def client_certificate(self, name: str) -> Path:
        """Certificate of a caller of this name."""
        return self.data_dir / "clients" / f"{name}.crt"

    def client_key(self, name: str) -> Path:
        """Private key of a caller of this name."""
        return self.data_dir / "clients" / f"{name}.key"

    @property
    def node(self) -> "NodePaths":
        """The node that `up` runs beside the control plane."""
        return NodePaths(data_dir=self.data_dir / "node")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePaths:
    """One node's data directory."""

    data_dir: Path

    @property
    def trust(self) -> Path:
        """What the node pins (`shared/trust.py`): put there by whoever sets it up, never fetched."""
        return self.data_dir / "trust.json"

    @property
    def keyset(self) -> Path:
        """The newest keyset that the node has seen, as it was relayed: removed only with new trust roots."""
        return self.data_dir / "keyset.dsse"

    @property
    def identity(self) -> Path:
        """Node id and installation, written at enrollment, as JSON."""
        return self.data_dir / "node.json"

    @property
    def certificate(self) -> Path:
        return self.data_dir / "node.crt"

    @property
    def key(self) -> Path:
        return self.data_dir / "node.key"

    @property
    def receipt_key(self) -> Path:
        return self.data_dir / "receipt.key"

    @property
    def spool(self) -> Path:
        return self.data_dir / "spool"

    @property
    def artifacts(self) -> Path:
        return self.data_dir / "artifacts"

    @property
    def scratch(self) -> Path:
        """What guests write while they run; emptied at every start."""
        return self.data_dir / "scratch"
