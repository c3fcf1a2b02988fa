"""Who asks for addresses in a cluster: static-ip through an agent, and whereabouts. Their calls, timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cnvnet.vm import names
from tests.bench.nodes import container_id
from tests.bench.systems import NETWORK, Failed, PluginCall, crowd, timed

Document = dict[str, Any]

# The interface of a VM in its second network, as KubeVirt calls it. Pods that are no VM have it as well.
IFNAME: Final = names.hashed("lan")


class Sandbox(NamedTuple):
    """A sandbox of a pod: `number` tells those of one pod apart."""

    pod: Document
    number: int = 0

    @property
    def container_id(self) -> str:
        return container_id(f"{self.pod['metadata']['uid']} {self.number}")


class Burst(NamedTuple):
    """Milliseconds of many calls: of all together, and of each."""

    whole: float
    each: list[float]


class Caller(NamedTuple):
    """An address manager on a node. `node` is the node's name in Kubernetes, and that of its namespace."""

    column: str
    node: str
    program: str
    ipam: Mapping[str, Any]
    environment: Mapping[str, str]

    def call(self, command: str, sandbox: Sandbox) -> float:
        """Milliseconds of one call. Failed."""
        spent, result = timed(self.plugin_call(command, sandbox))
        if command == "ADD" and not result.get("ips"):
            raise Failed(f"{self.column}: ADD gave no address: {result}")
        return spent

    def plugin_call(self, command: str, sandbox: Sandbox) -> PluginCall:
        """What is run for it."""
        metadata = sandbox.pod["metadata"]
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": metadata["namespace"],
            "K8S_POD_NAME": metadata["name"],
            "K8S_POD_INFRA_CONTAINER_ID": sandbox.container_id,
            "K8S_POD_UID": metadata["uid"],
        }
        environment = {
            **self.environment,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": sandbox.container_id,
            "CNI_NETNS": "/run/netns/nowhere",
            "CNI_IFNAME": IFNAME,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in args.items()),
        }
        config = {"cniVersion": "1.0.0", "name": NETWORK, "type": "macvlan", "ipam": self.ipam}
        return PluginCall(f"{self.column}: {command}", self.node, self.program, environment, config)


def burst(command: str, calls: Sequence[tuple[Caller, Sandbox]], parallel: int) -> Burst:
    """A call for each sandbox, so many at a time. Failed."""
    plugin_calls = [caller.plugin_call(command, sandbox) for caller, sandbox in calls]
    begun = time.perf_counter_ns()
    each = crowd(plugin_calls, parallel)
    return Burst((time.perf_counter_ns() - begun) / 1e6, each)
