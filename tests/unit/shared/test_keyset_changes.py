"""The next version of a keyset: what each change does, and what it refuses."""

from datetime import timedelta

import pytest

from shared.errors import AlreadyExistsError, InvalidInputError, NotFoundError, WrongStateError
from shared.keyset import KeyPurpose, decode_keyset, encode_keyset
from shared.keyset_changes import (
    BACKDATE,
    add_key,
    differences,
    drop_key,
    end_key,
    end_others,
    following,
    revoke_key,
    undone,
)
from tests.fakes.clock import START
from tests.fixtures.keys import ed25519_key, rsa_key
from tests.unit.shared.builders import a_keyset, an_entry

ROOT, OLD, NEW = ed25519_key("root"), rsa_key("order"), rsa_key("new")
DAY = timedelta(days=1)
ORDER = KeyPurpose.ORDER
NOW = START + DAY


def keyset(*entries):
    return a_keyset(ROOT, *entries)


def add(key=NEW, purpose=ORDER, now=NOW):
    return add_key(purpose, key.public, now=now, life=10 * DAY)


def test_a_rotation_lists_the_new_key_and_lets_the_old_one_end():
    changed = following(keyset(), add(), end_others(ORDER, NEW.key_id, at=NOW + DAY), now=NOW)
    old, new = changed.entries
    assert (changed.version, changed.issued_at) == (4, NOW)
    assert (old.key_id, old.not_after) == (OLD.key_id, NOW + DAY)
    assert (new.key_id, new.not_before, new.not_after) == (NEW.key_id, NOW - BACKDATE, NOW + 10 * DAY)
    assert decode_keyset(encode_keyset(changed)) == changed


def test_nothing_changed_is_the_same_keyset():
    first = following(keyset(), add(), now=NOW)
    assert following(first, add(), now=NOW) is first


def test_a_key_that_would_end_earlier_is_not_given_more_time():
    short = an_entry(not_after=NOW + timedelta(hours=1))
    changed = following(keyset(short), end_others(ORDER, NEW.key_id, at=NOW + DAY), now=NOW)
    assert changed.entries == (short,)
    assert following(keyset(short), end_key(OLD.key_id, at=NOW + DAY), now=NOW).entries == (short,)


def test_other_purposes_are_left_alone():
    log = an_entry(purpose=KeyPurpose.LOG, key=ed25519_key("log").public)
    changed = following(keyset(log, an_entry()), end_others(ORDER, NEW.key_id, at=NOW), now=NOW)
    assert changed.entries[0] == log


@pytest.mark.parametrize(
    "over", [{"revoked_at": START}, {"not_after": NOW}, {"not_before": NOW + DAY, "not_after": NOW + 2 * DAY}]
)
def test_a_key_that_counts_no_more_does_not_come_back(over):
    gone = an_entry(key=NEW.public, **over)
    with pytest.raises(AlreadyExistsError):
        following(keyset(gone), add(), now=NOW)


def test_a_key_of_the_wrong_algorithm_is_refused():
    with pytest.raises(InvalidInputError):
        add(key=ed25519_key("order"))


def test_a_revocation_holds_for_every_purpose_and_is_never_postponed():
    both = keyset(an_entry(), an_entry(purpose=KeyPurpose.PUBLISHER))
    revoked = following(both, revoke_key(OLD.key_id, at=NOW, log_position=7), now=NOW)
    assert {(entry.revoked_at, entry.revoked_log_position) for entry in revoked.entries} == {(NOW, 7)}
    assert following(revoked, revoke_key(OLD.key_id, at=NOW + DAY), now=NOW + DAY) is revoked


def test_keys_that_are_not_listed_are_told():
    for change in (revoke_key(NEW.key_id, at=NOW), end_key(NEW.key_id, at=NOW), drop_key(NEW.key_id)):
        with pytest.raises(NotFoundError):
            following(keyset(), change, now=NOW)


def test_a_key_does_not_end_before_it_begins():
    with pytest.raises(WrongStateError):
        following(keyset(), end_key(OLD.key_id, at=START), now=NOW)


def test_a_revocation_that_is_taken_back_is_found():
    revoked = keyset(an_entry(revoked_at=NOW))
    assert undone(keyset(), revoked) == ""
    assert OLD.key_id in undone(revoked, keyset())
    assert OLD.key_id in undone(revoked, keyset(an_entry(revoked_at=NOW + DAY)))
    assert undone(revoked, keyset(an_entry(revoked_at=START))) == ""
    assert undone(revoked, following(revoked, drop_key(OLD.key_id), now=NOW)) == ""


def test_differences_name_every_key_that_changes():
    changed = following(keyset(), add(), revoke_key(OLD.key_id, at=NOW), now=NOW)
    lines = differences(keyset(), changed)
    assert [line[:1] for line in lines] == ["+", "~"]
    assert "revoked" in lines[1]
    assert differences(changed, following(changed, drop_key(OLD.key_id), now=NOW))[0].startswith("- order")
