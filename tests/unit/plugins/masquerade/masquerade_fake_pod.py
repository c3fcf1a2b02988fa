"""A pod in memory with masquerade in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnvnet.cni.request import Request
from cnvnet.plugins.commands import BindingCommands
from cnvnet.plugins.masquerade import plugin
from tests.unit.plugins.fake_pod import BindingWorld, request_in

NETWORK = "masq"
FULL: dict[str, Any] = {
    "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}],
    "portRanges": [{"protocol": "tcp", "start": 8000, "end": 8010}],
    "args": {"cni": {"vm": {"name": "vm1", "role": "target"}}},
    "queues": 2,
    "mtu": 1400,
}


def a_request(config: Mapping[str, Any], **changes: Any) -> Request:
    """An ADD in the first of the three ways unless `changes` say otherwise."""
    return request_in(NETWORK, config, **changes)


class World(BindingWorld):
    """One pod; `add`, `delete` and the others are calls of the plugin with the keys given."""

    network = NETWORK

    def load(self, env: Mapping[str, str]) -> BindingCommands[Any]:
        return plugin.load(env, self.kernel)
