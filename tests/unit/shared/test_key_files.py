import os
import stat

import pytest

from shared.errors import AlreadyExistsError, KeyFileModeError, KeyFormatError, NotFoundError
from shared.key_files import (
    read_private_key,
    read_public_key,
    read_secret_file,
    write_private_key,
    write_secret_file,
)
from tests.fixtures.keys import ed25519_key, rsa_key


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys" / "order.pem"
    write_private_key(path, rsa_key())
    return path


def test_written_key_has_mode_0600_in_a_folder_of_0700_and_reads_back(key_file):
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file.parent.stat().st_mode) == 0o700
    assert read_private_key(key_file).key_id == rsa_key().key_id
    assert [path.name for path in key_file.parent.iterdir()] == ["order.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644, 0o777])
def test_key_file_that_others_may_touch_is_refused_with_the_command_to_mend_it(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(KeyFileModeError, match=f"{mode:04o}") as caught:
        read_private_key(key_file)
    assert caught.value.hint == f"chmod 600 {key_file}"


def test_read_only_key_file_is_fine(key_file):
    key_file.chmod(0o400)
    assert read_private_key(key_file).key_id == rsa_key().key_id


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_key_file_of_another_user_is_refused(key_file):
    os.chown(key_file, 12345, -1)
    with pytest.raises(KeyFileModeError, match="belongs to user 12345"):
        read_private_key(key_file)


def test_symbolic_link_to_a_key_is_refused(key_file, tmp_path):
    link = tmp_path / "link.pem"
    link.symlink_to(key_file)
    with pytest.raises(NotFoundError):
        read_private_key(link)


def test_fifo_does_not_hang_and_is_refused(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(NotFoundError, match="not a regular file"):
        read_private_key(fifo)


def test_existing_key_is_never_overwritten(key_file):
    with pytest.raises(AlreadyExistsError):
        write_private_key(key_file, ed25519_key())
    assert read_private_key(key_file).key_id == rsa_key().key_id
    assert [path.name for path in key_file.parent.iterdir()] == ["order.pem"]


def test_missing_and_damaged_files_name_the_path(tmp_path):
    with pytest.raises(NotFoundError, match=r"none\.pem"):
        read_private_key(tmp_path / "none.pem")
    write_secret_file(tmp_path / "bad.pem", b"nonsense")
    with pytest.raises(KeyFormatError, match=r"bad\.pem"):
        read_private_key(tmp_path / "bad.pem")
    (tmp_path / "bad.pub").write_bytes(b"nonsense")
    with pytest.raises(KeyFormatError, match=r"bad\.pub"):
        read_public_key(tmp_path / "bad.pub")
    with pytest.raises(NotFoundError):
        read_public_key(tmp_path)


def test_public_key_file_may_be_read_by_all(tmp_path):
    (tmp_path / "key.pub").write_bytes(rsa_key().public.to_pem())
    assert read_public_key(tmp_path / "key.pub") == rsa_key().public


def test_secret_file_is_bounded_to_the_byte(tmp_path):
    write_secret_file(tmp_path / "secret", b"12345")
    assert read_secret_file(tmp_path / "secret", max_bytes=5) == b"12345"
    with pytest.raises(KeyFormatError, match="larger than 4"):
        read_secret_file(tmp_path / "secret", max_bytes=4)
