"""Executables with too few descriptors, too little memory, no room in a file: an error, and nothing left."""

from __future__ import annotations

import pytest

from tests.faults.test_lost_resources import CONFIG, assert_nothing_left, delete
from tests.harness import Node

pytestmark = pytest.mark.alone

LIMITS = [
    *(f"--nofile={number}:{number}" for number in (64, 24, 16, 12, 10, 8, 6, 5, 4, 3)),
    *(f"--as={megabytes << 20}" for megabytes in (400, 100, 60, 45, 30, 20, 10)),
    *(f"--fsize={size}" for size in (1 << 20, 16384, 4096, 512, 1)),
]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_is_an_error_that_leaves_nothing(node: Node, limit: str) -> None:
    pod = node.pod()
    outcome = node.cni("cnv-bridge", "ADD", CONFIG, pod, container_id="c0", within=("prlimit", limit))
    # An interpreter that cannot even start says so in its own way.
    if outcome.code == 1 and outcome.stdout:
        assert outcome.json["code"] in (5, 8, 11, 999), outcome
    if outcome.code != 0:
        assert [name for name in node.links() if name.startswith("veth")] == []
    delete(node, pod).ok()
    assert list(pod.links()) == ["lo"]
    assert_nothing_left(node)
