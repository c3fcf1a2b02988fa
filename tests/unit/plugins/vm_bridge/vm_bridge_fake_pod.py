"""A pod in memory that has a gateway of each family and neighbours, and vm-bridge in it."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface, ip_network
from typing import Any

from cnvnet.cni.request import Request
from cnvnet.kernel.neighbours import Neighbour
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.plugins.commands import BindingCommands
from cnvnet.plugins.vm_bridge import plugin
from tests.unit.plugins.fake_pod import BindingWorld, request_in

NETWORK = "wire"


def a_request(config: Mapping[str, Any], **changes: Any) -> Request:
    """An ADD in the first of the three ways unless `changes` say otherwise."""
    return request_in(NETWORK, config, **changes)


class World(BindingWorld):
    """One pod; `add`, `delete` and the others are calls of the plugin with the keys given."""

    network = NETWORK

    def load(self, env: Mapping[str, str]) -> BindingCommands[Any]:
        return plugin.load(env, self.kernel)

    def furnish(self, ifindex: int, addresses: tuple[str, ...]) -> None:
        if any("." in address for address in addresses):
            default = Route(ip_network("0.0.0.0/0"), ifindex, ip_interface("10.244.0.1").ip)
            self.pod.add_route(AddRoute(default))
        router = Neighbour(ifindex, ip_interface("fd99::1").ip, "0a:00:00:00:00:01", permanent=False)
        self.pod.reachable.append(router)
        self.pod.neighbours.append(Neighbour(ifindex, ip_interface("10.244.0.9").ip, "0a:00:00:00:00:09"))
