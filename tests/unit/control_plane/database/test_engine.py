"""What names a database, and what is refused with a hint."""

import pytest

from control_plane.database.engine import create_engine, database_url
from shared.errors import SettingsError


def test_primary_and_standby_are_two_hosts_of_which_the_primary_is_taken():
    url = "postgresql://af@/agentfactory?host=a:5432&host=b:5433&target_session_attrs=primary"
    engine = create_engine(url, application="test")
    _, options = engine.dialect.create_connect_args(engine.url)
    assert (options["host"], options["port"]) == (["a", "b"], [5432, 5433])
    assert options["target_session_attrs"] == "primary"


@pytest.mark.parametrize(
    "url", ["postgresql://af@a:5432,b:5432/agentfactory", "nothing", "mysql://af@a/agentfactory"]
)
def test_url_that_is_none_of_ours_is_refused_with_a_hint(url):
    with pytest.raises(SettingsError, match="database url") as refused:
        database_url(url)
    assert "target_session_attrs" in (refused.value.hint or "")
