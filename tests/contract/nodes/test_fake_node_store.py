"""The fake keeps what the suite asks for."""

import pytest

from shared.clock import SystemClock
from tests.contract.nodes.node_store_suite import NodeStoreSuite
from tests.contract.nodes.stage import Stage
from tests.fakes.nodes import FakeNodeStore


class TestFakeNodeStore(NodeStoreSuite):
    @pytest.fixture
    def stage(self) -> Stage:
        return Stage(nodes=FakeNodeStore(SystemClock()), told=None, database=None)
