"""OpenBao of docker-compose.yml: what it starts with, its set-up, secrets of agents. Prints no value.

    custody.py prepare      key of the seal and certificate, before the first start; a repeat keeps them
    custody.py setup        opens a new server, makes engines and roles; a repeat brings them up to date
    custody.py secret TENANT NAME URL...    stores a secret of agents; its value is read from standard input

The seal's key lies on the machine that it protects, in a volume: whoever has both volumes has the keys. For
production name a key management service in the seal of docker/openbao.hcl instead.
"""

import argparse
import ipaddress
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import hvac
import hvac.exceptions
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

FOLDER: Final = Path("/run/custody")
SEAL: Final = FOLDER / "seal"
RECOVERY: Final = SEAL / "recovery.json"
SERVER: Final = os.environ.get("CUSTODY_URL", "https://openbao:8200")
HOSTS: Final = ("openbao", "localhost")
LIFE: Final = timedelta(days=3650)
TIMEOUT: Final = 10
READY_SECONDS: Final = 60
POLL_SECONDS: Final = 0.1
MAX_VALUE: Final = 8192

CONTROL_PLANE: Final = """
path "transit/keys/agentfactory-*" {
  capabilities = ["create", "read", "update"]
}
path "transit/sign/agentfactory-*" {
  capabilities = ["update"]
}
path "transit/encrypt/agentfactory-body-*" {
  capabilities = ["update"]
}
path "transit/decrypt/agentfactory-body-*" {
  capabilities = ["update"]
}
path "transit/keys/agentfactory-body-*" {
  capabilities = ["create", "read", "update", "delete"]
}
"""
NODE: Final = """
path "secret/data/agentfactory/*" {
  capabilities = ["read"]
}
"""
SETUP: Final = """
path "sys/policy/agentfactory-*" {
  capabilities = ["create", "read", "update"]
}
path "auth/approle/role/agentfactory-*" {
  capabilities = ["create", "read", "update"]
}
path "secret/data/agentfactory/*" {
  capabilities = ["create", "update"]
}
"""
ROLES: Final = {"control-plane": CONTROL_PLANE, "node": NODE, "setup": SETUP}
"""Role, and what it may do. `setup` grants, and so is as strong as all of them."""


def main() -> int:
    """Return the exit code: 0 done, 3 refused, 4 the server does not serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare")
    commands.add_parser("setup")
    secret = commands.add_parser("secret")
    secret.add_argument("tenant")
    secret.add_argument("name")
    secret.add_argument("urls", nargs="+", metavar="URL")
    given = parser.parse_args()
    try:
        if given.command == "prepare":
            prepare()
        elif given.command == "setup":
            set_up()
        else:
            store(given.tenant, given.name, given.urls)
    except (hvac.exceptions.VaultError, requests.RequestException) as error:
        print(f"error: OpenBao refuses or does not answer: {type(error).__name__}: {error}", file=sys.stderr)
        return 4
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


# --- before the first start ---


def prepare() -> None:
    """Make the key of the seal and the server's certificate, as far as they are missing."""
    if not (SEAL / "seal.key").exists():
        write(SEAL / "seal.key", secrets.token_bytes(32))
    if not (SEAL / "server.crt").exists():
        certificate()


def certificate() -> None:
    """Make an authority that is forgotten at once, and the one certificate that it issues."""
    now = datetime.now(UTC) - timedelta(minutes=5)
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _name("Agent Factory custody")
    ca = (
        _certificate(issuer, issuer, authority.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    names = [*map(x509.DNSName, HOSTS), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = (
        _certificate(_name("openbao"), issuer, server.public_key(), now)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority, hashes.SHA256())
    )
    key = server.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write(SEAL / "server.key", key)
    write(SEAL / "ca.crt", ca.public_bytes(serialization.Encoding.PEM))
    # Last: it says that all is there.
    write(SEAL / "server.crt", leaf.public_bytes(serialization.Encoding.PEM))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + LIFE)
    )


# --- set-up ---


def set_up() -> None:
    """Open a new server, then make everything that the roles need; the root token is gone afterwards."""
    client = connected()
    if not client.sys.is_initialized():
        made = client.adapter.put("/v1/sys/init", json={"recovery_shares": 1, "recovery_threshold": 1})
        write(RECOVERY, json.dumps({key: made[key] for key in ("root_token", "recovery_keys")}).encode())
        loudly(RECOVERY)
    wait(lambda: serves(client), "OpenBao is sealed, or not initialised by this installation")
    kept = json.loads(RECOVERY.read_bytes()) if RECOVERY.exists() else {}
    if root := kept.pop("root_token", None):
        client.token = root
        first_time(client)
        # Forgotten before it ends: should this be interrupted here, nobody holds it.
        write(RECOVERY, json.dumps(kept).encode())
        client.auth.token.revoke_self()
    client = as_setup()
    for role, rules in ROLES.items():
        grant(client, role, rules)
        log_in_file(client, role)
    client.auth.token.revoke_self()
    print("OpenBao keeps the keys: roles " + ", ".join(ROLES))


def first_time(client: hvac.Client) -> None:
    """Make what only root may: engines, the way to log in, and the role that makes the others."""
    mounted = client.sys.list_mounted_secrets_engines()["data"]
    if "transit/" not in mounted:
        client.sys.enable_secrets_engine("transit")
    if "secret/" not in mounted:
        client.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
    if "approle/" not in client.sys.list_auth_methods()["data"]:
        client.sys.enable_auth_method("approle")
    grant(client, "setup", SETUP)
    log_in_file(client, "setup")


def grant(client: hvac.Client, role: str, rules: str) -> None:
    """Let a role do what its rules say and no more."""
    name = f"agentfactory-{role}"
    client.sys.create_or_update_policy(name, rules)
    client.auth.approle.create_or_update_approle(
        name,
        token_policies=[name],
        token_ttl="1h",  # noqa: S106 - a time
        token_max_ttl="24h",  # noqa: S106 - a time
    )
    client.auth.approle.update_role_id(name, name)


def log_in_file(client: hvac.Client, role: str) -> None:
    """Write what a role logs in with, unless what is there still does."""
    folder = SEAL / role if role == "setup" else FOLDER / role
    file = folder / "secret-id"
    if file.exists() and logs_in(role, file.read_text()):
        return
    made = client.auth.approle.generate_secret_id(f"agentfactory-{role}")
    write(folder / "ca.crt", (SEAL / "ca.crt").read_bytes())
    write(file, made["data"]["secret_id"].encode())


def logs_in(role: str, secret_id: str) -> bool:
    client = new_client()
    try:
        client.auth.approle.login(f"agentfactory-{role}", secret_id)
    except (hvac.exceptions.InvalidRequest, hvac.exceptions.Forbidden):
        return False
    client.auth.token.revoke_self()
    return True


# --- secrets of agents ---


def store(tenant: str, name: str, urls: list[str]) -> None:
    """Store a secret; ValueError when standard input holds none."""
    value = sys.stdin.read(MAX_VALUE + 1).strip()
    if not value or len(value) > MAX_VALUE:
        raise ValueError(f"standard input holds no value of 1 to {MAX_VALUE} characters")
    client = as_setup()
    client.secrets.kv.v2.create_or_update_secret(
        f"agentfactory/{tenant}/{name}",
        secret={"value": value, "urls": "\n".join(urls)},
        mount_point="secret",
    )
    client.auth.token.revoke_self()
    print(f"stored {tenant}/{name}; nodes use it within 5 s")


# --- the server ---


def new_client() -> hvac.Client:
    return hvac.Client(url=SERVER, verify=str(SEAL / "ca.crt"), timeout=TIMEOUT, token="")


def connected() -> hvac.Client:
    """Return a client as soon as the server answers, whatever it says."""
    client = new_client()
    wait(lambda: health(client) is not None, f"{SERVER} does not answer")
    return client


def as_setup() -> hvac.Client:
    """Return a client that is logged in to make roles and to store secrets."""
    file = SEAL / "setup" / "secret-id"
    if not file.exists():
        raise ValueError(
            f"{file} is not there: OpenBao was set up by another installation; remove its volume custody-data"
        )
    client = new_client()
    client.auth.approle.login("agentfactory-setup", file.read_text())
    return client


def health(client: hvac.Client) -> dict[str, Any] | None:
    try:
        answer = client.sys.read_health_status(method="GET")
    except (requests.RequestException, hvac.exceptions.VaultError):
        return None
    return dict(answer if isinstance(answer, dict) else answer.json())


def serves(client: hvac.Client) -> bool:
    found = health(client) or {"sealed": True}
    return not found["sealed"] and not found["standby"]


def wait(ready: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise ValueError(f"{problem} after {READY_SECONDS} s; docker compose logs openbao says why")
        time.sleep(POLL_SECONDS)


def write(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def loudly(file: Path) -> None:
    print(
        "\n!! OpenBao opens itself with a key that lies on this machine, in the volume custody-seal.\n"
        f"!! Its recovery key is there too ({file.name}): take a copy of both to a safe place now.\n"
        "!! This is for one machine that you trust; docs/compose.md says what production needs.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
