"""Bundles: what was written is read, and no other byte passes for it."""

import io
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.replay.bundle import MAX_BYTES, PARAMETERS, Bundle, is_bundle, read_bundle, write_bundle
from data_plane.replay.domain import Material, PartName, SaltedBody
from shared.digests import SALT_BYTES
from shared.errors import MalformedError, PackageAlteredError, PackageTooLargeError, VerificationError

BODIES = st.dictionaries(
    st.sampled_from(PartName),
    st.builds(
        SaltedBody, content=st.binary(max_size=64), salt=st.binary(min_size=SALT_BYTES, max_size=SALT_BYTES)
    ),
)
BUNDLES = st.builds(
    Bundle,
    receipt=st.binary(max_size=64),
    material=st.builds(
        Material, module=st.binary(max_size=64), parameters=st.binary(max_size=64), bodies=BODIES
    ),
    policy=st.binary(max_size=64),
)
ONE = Bundle(
    receipt=b"{}",
    material=Material(
        module=b"\0asm", parameters=b"{}", bodies={PartName.INPUT: SaltedBody(content=b"in", salt=bytes(32))}
    ),
)


@given(bundle=BUNDLES)
def test_what_was_written_is_read_and_written_the_same_again(bundle: Bundle) -> None:
    data = write_bundle(bundle)
    assert read_bundle(data) == bundle
    assert write_bundle(read_bundle(data)) == data
    assert is_bundle(data)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_byte_that_is_another_is_refused_or_means_nothing(data: st.DataObject) -> None:
    written = write_bundle(ONE)
    at = data.draw(st.integers(0, len(written) - 1))
    changed = bytearray(written)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert read_bundle(bytes(changed)) == ONE  # dates and attributes of the archive say nothing
    except VerificationError:
        return


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


ATTACKS: dict[str, tuple[Callable[[dict[str, bytes]], bytes], type[VerificationError]]] = {
    "a bomb": (
        lambda members: zipped(members | {"input": bytes(10**6)}, zipfile.ZIP_DEFLATED),
        MalformedError,
    ),
    "an unknown member": (lambda members: zipped(members | {"../evil": b""}), MalformedError),
    "no index": (lambda members: zipped({"receipt.json": members["receipt.json"]}), MalformedError),
    "another body": (lambda members: zipped(members | {"input": b"no"}), PackageAlteredError),
    "one member too few": (
        lambda members: zipped({name: data for name, data in members.items() if name != "input"}),
        MalformedError,
    ),
    "one member too many": (lambda members: zipped(members | {"log": b""}), MalformedError),
    "too large a member": (
        lambda members: zipped(members | {PARAMETERS: bytes(MAX_BYTES[PARAMETERS] + 1)}),
        PackageTooLargeError,
    ),
    "no archive": (lambda _: b"PK\x03\x04 and nothing", MalformedError),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused(attack: str) -> None:
    make, error = ATTACKS[attack]
    with pytest.raises(error):
        read_bundle(make(members_of(write_bundle(ONE))))


def test_a_member_that_is_there_twice_is_refused() -> None:
    file = io.BytesIO(write_bundle(ONE))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("input", b"other")
    with pytest.raises(MalformedError):
        read_bundle(file.getvalue())
