"""What a node remembers of the log, for how long, and what it does not ask again."""

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from data_plane.metrics import NodeMetrics
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.log_check import RETRY, LogCheck, LogRequire
from data_plane.orders.log_view import LogOffer, LogView
from data_plane.session.convert import log_offer_from_proto
from shared.errors import MalformedError, OrderRejectedError, UnavailableError
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, sign_keyset
from shared.log_leaf import policy_fact, template_fact
from tests.fakes.clock import FakeClock
from tests.fakes.scripted_log import ScriptedLog
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.unit.data_plane.builders import order
from tests.unit.shared.builders import INSTALLATION, a_keyset, an_entry

ROOT = rsa_key("root")
MAX_AGE = timedelta(seconds=60)


class Source:
    """Implements `LogSource` over a scripted log."""

    def __init__(self) -> None:
        self.log = ScriptedLog(INSTALLATION)
        self.order = order()
        self.asked = 0
        self.error: Exception | None = None

    async def read_log(self, known_size: int, attempt: object) -> LogOffer:
        self.asked += 1
        if self.error is not None:
            raise self.error
        one = self.order
        facts = (template_fact(one.tenant_id, one.template_digest), policy_fact(one.policy_digest))
        return log_offer_from_proto(
            await self.log.answer(known_size, facts if attempt is not None else (), epoch=1)
        )


class Node:
    def __init__(self, folder, keyset: NodeKeyset, require: LogRequire) -> None:
        self.clock, self.source = FakeClock(), Source()
        self.view = LogView(
            keyset=keyset,
            installation=InstallationId(INSTALLATION),
            path=folder / "log.checkpoint",
            max_age=MAX_AGE,
            clock=self.clock,
        )
        self.check = LogCheck(
            view=self.view,
            source=self.source,
            require=require,
            max_age=MAX_AGE,
            metrics=NodeMetrics(CollectorRegistry(), self.clock),
            clock=self.clock,
        )


@pytest.fixture
async def make_node(tmp_path):
    keyset = NodeKeyset(
        root_keys={ROOT.key_id: ROOT.public},
        installation=InstallationId(INSTALLATION),
        path=tmp_path / "keyset.dsse",
    )
    log = an_entry(purpose=KeyPurpose.LOG, key=ed25519_key("log").public)
    keyset.offer(await sign_keyset(a_keyset(ROOT, an_entry(), log), [signer(ROOT)]))
    return lambda require=LogRequire.ALWAYS: Node(tmp_path, keyset, require)


@pytest.mark.parametrize(("seconds", "asked"), [(59, 1), (60, 1), (61, 2)])
async def test_an_answer_counts_as_long_as_its_checkpoint_is_young(make_node, seconds, asked):
    node = make_node()
    await node.check.require(node.source.order)
    node.clock.advance(timedelta(seconds=seconds))
    await node.check.require(node.source.order)
    assert node.source.asked == asked


async def test_a_refusal_is_remembered_for_a_moment(make_node):
    node = make_node()
    node.source.log.keep_back("policy")
    for _ in range(3):
        with pytest.raises(OrderRejectedError, match="NOT_LOGGED: policy"):
            await node.check.require(node.source.order)
    assert node.source.asked == 1
    node.source.log.kept_back.clear()
    node.clock.advance(RETRY)
    await node.check.require(node.source.order)
    assert node.source.asked == 2


async def test_the_silence_of_an_older_control_plane_is_remembered_for_a_moment(make_node):
    node = make_node(LogRequire.WHEN_GIVEN)
    node.source.error = UnavailableError("older")
    for _ in range(3):
        await node.check.require(node.source.order)
    assert node.source.asked == 1
    node.clock.advance(RETRY)
    node.source.error = None
    node.source.log.keep_back("template")
    with pytest.raises(OrderRejectedError, match="NOT_LOGGED: template"):
        await node.check.require(node.source.order)


async def test_another_tenant_s_publication_of_the_same_template_is_none(make_node):
    node = make_node()
    await node.check.require(node.source.order)
    assert node.view.holds(template_fact(node.source.order.tenant_id, node.source.order.template_digest))
    assert not node.view.holds(template_fact("another", node.source.order.template_digest))


async def test_a_kept_checkpoint_that_was_altered_stops_the_start(make_node, tmp_path):
    node = make_node()
    await node.check.require(node.source.order)
    path = tmp_path / "log.checkpoint"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MalformedError):
        make_node().view.load()


async def test_what_was_kept_is_taken_up_again(make_node):
    node = make_node()
    await node.check.require(node.source.order)
    again = make_node()
    again.view.load()
    assert again.view.newest == node.view.newest
    assert again.check.seen() == node.check.seen()
    assert not again.view.is_fresh()
