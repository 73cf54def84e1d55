"""One suite for every `NodeStore`."""

import pytest

pytest.register_assert_rewrite("tests.contract.nodes.node_store_suite")
