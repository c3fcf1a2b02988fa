"""Clusters for the bench: control planes, nodes with an agent each, and what runs on them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final, TypeVar

from cnvnet.ipam.lease import LeaseKey
from tests.bench.cluster import whereabouts
from tests.bench.cluster.callers import IFNAME, Caller, Document
from tests.bench.cluster.leases import add_leases
from tests.bench.nodes import run
from tests.bench.programs import Programs, agent
from tests.bench.systems import AGENT, CHECKOUT, NETWORK, OTHER, WHEREABOUTS
from tests.e2e import cnvnet_objects
from tests.e2e.control_plane import PORT, SERVER, ControlPlane, kubeconfig
from tests.e2e.kubevirt_objects import KubeVirt, Running

T = TypeVar("T")

NAMESPACE: Final = "bench"
_SUBNET: Final = "10.64.0.0/12"
# Objects that are made at a time.
_THREADS: Final = 4


class Cluster:
    """A control plane, and nodes whose pods are objects only."""

    def __init__(
        self, name: str, control_plane: ControlPlane, folder: Path, programs: Programs, undo: ExitStack
    ) -> None:
        """`name` is that of the namespace in which the API server is; what is made ends with `undo`."""
        self.control_plane = control_plane
        self._name = name
        self._folder = folder
        self._programs = programs
        self._undo = undo
        self._nodes = 0
        # Of either kind.
        self._pods = 0
        self._kubevirt = KubeVirt(control_plane)
        self._kubevirt.install()
        control_plane.add_namespace(NAMESPACE)

    def add_agent(
        self, column: str, programs: Programs | None = None, undo: ExitStack | None = None
    ) -> Caller:
        """static-ip on a new node, whose agent has a token of its own; both end with `undo`."""
        programs, undo = programs or self._programs, undo or self._undo
        node = self._add_node(undo)
        statedir = self._folder / node
        statedir.mkdir()
        token = cnvnet_objects.agent(self.control_plane, node).token
        options = ("--kubeconfig", str(self._kubeconfig(node, token)), "--node-name", node)
        undo.enter_context(agent(node, programs, *options, statedir=statedir))
        return Caller(
            column,
            node,
            str(programs.launchers / "static-ip"),
            {"type": "static-ip", "store": "kubernetes", "subnet": _SUBNET},
            {
                "PATH": os.environ["PATH"],
                "CNI_PATH": str(programs.launchers),
                "CNVNET_RUNDIR": f"/run/{node}",
                "CNVNET_STATEDIR": str(statedir),
            },
        )

    def add_whereabouts(self) -> Caller:
        """whereabouts on a new node."""
        node = self._add_node(self._undo)
        access = {
            "kubernetes": {
                "kubeconfig": str(self._kubeconfig(node, whereabouts.install(self.control_plane)))
            }
        }
        # It does not run without a file, either.
        file = self._folder / f"{node}.conf"
        file.write_text(json.dumps(access))
        programs = CHECKOUT / ".tools/bin"
        return Caller(
            WHEREABOUTS,
            node,
            str(programs / "whereabouts"),
            {"type": "whereabouts", "range": _SUBNET, "configuration_path": str(file), **access},
            {"PATH": os.environ["PATH"], "CNI_PATH": str(programs)},
        )

    def _kubeconfig(self, name: str, token: str) -> Path:
        """For a client in a node's namespace."""
        authority = self.control_plane.authority.read_bytes()
        file = self._folder / f"{name}.kubeconfig"
        file.write_text(json.dumps(kubeconfig(f"https://{SERVER}:{PORT}", token, authority)))
        return file

    def _add_node(self, undo: ExitStack) -> str:
        """A node as an object, and as a namespace on the switch."""
        self._nodes += 1
        node, port = f"{self._name}-{self._nodes}", f"c{self._nodes}"
        self.control_plane.add_node(node)
        run("ip", "netns", "add", node)
        undo.callback(run, "ip", "netns", "del", node)
        for each in (
            f"-n {node} link set lo up",
            f"-n {self._name} link add {port} type veth peer name lan0 netns {node}",
            f"-n {self._name} link set {port} master switch up",
            f"-n {node} addr add 192.168.77.{10 + self._nodes}/24 dev lan0",
            f"-n {node} link set lan0 up",
        ):
            run("ip", *each.split())
        return node

    def connections(self, caller: Caller) -> frozenset[str]:
        """The local ends of a node's connections to the API server."""
        ss = f"ss -Htn state established dst {SERVER}:{PORT}"
        listed = run("nsenter", f"--net=/run/netns/{caller.node}", *ss.split())
        return frozenset(line.split()[2] for line in listed.splitlines())

    # -- what is there

    def pods(self, count: int, node: str) -> list[Document]:
        """So many new pods that are no VM, on a node."""
        return self._made(count, lambda number: self._pod(f"pod-{number}", node))

    def start_machines(self, count: int, node: str) -> list[Running]:
        """So many new VMs, with their launcher pods on a node."""
        return self._made(count, lambda number: self._start(number, node))

    def restart(self, running: Running) -> Running:
        """The VM is stopped, and started on the same node once more."""
        self._kubevirt.stop(running)
        return self._kubevirt.start(running.machine, running.pod["spec"]["nodeName"])

    def add_leases(self, count: int) -> None:
        """Leases of VMs that are stopped, at the low end of the subnet."""
        key = LeaseKey(NETWORK, NAMESPACE, "stopped", IFNAME)
        file = self._kubeconfig("admin", self.control_plane.api.token)
        add_leases(str(file), self._name, key, _SUBNET, count)

    def _made(self, count: int, make: Callable[[int], T]) -> list[T]:
        """What is made of the next numbers, several at a time."""
        first, self._pods = self._pods, self._pods + count
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(make, range(first, first + count)))

    def _pod(self, name: str, node: str) -> Document:
        return self.control_plane.create_pod(NAMESPACE, name, node)

    def _start(self, number: int, node: str) -> Running:
        mac = f"02:00:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        return self._kubevirt.start(self._kubevirt.create_machine(NAMESPACE, f"vm-{number}", mac=mac), node)


class Clusters:
    """The cluster in which all are measured side by side, and others for a while."""

    def __init__(
        self,
        folder: Path,
        programs: Programs,
        other: Programs | None,
        undo: ExitStack,
        *,
        agents_only: bool = False,
    ) -> None:
        """`other` are another checkout's programs; what is made ends with `undo`."""
        self._folder = folder
        self._programs = programs
        self._other = other
        self._undo = undo
        self._agents_only = agents_only

    @contextmanager
    def another(self, name: str) -> Generator[Cluster]:
        """A cluster that ends with the block, with its nodes and agents."""
        folder = self._folder / name
        folder.mkdir()
        # By 127.0.0.1 its administrator reaches it.
        run("ip", "link", "set", "lo", "up")
        with cnvnet_objects.running_cluster(folder / "control-plane") as control_plane, ExitStack() as undo:
            run("ip", "netns", "attach", name, str(control_plane.machine.first))
            undo.callback(run, "ip", "netns", "del", name)
            yield Cluster(name, control_plane, folder, self._programs, undo)

    @cached_property
    def cluster(self) -> Cluster:
        """That of `callers`, made when it is needed first."""
        return self._undo.enter_context(self.another("bench"))

    @cached_property
    def agent(self) -> Caller:
        """static-ip of this checkout, through its agent."""
        return self.cluster.add_agent(AGENT)

    @cached_property
    def callers(self) -> list[tuple[Cluster, Caller]]:
        """All that is measured, each with its cluster: whereabouts, this checkout's and another one's."""
        made = [self.agent]
        if not self._agents_only:
            made.append(self.cluster.add_whereabouts())
        if self._other is not None:
            made.append(self.cluster.add_agent(OTHER, self._other))
        return [(self.cluster, each) for each in made]

    @contextmanager
    def without_policies(self) -> Generator[None]:
        """No admission policy is in force; on return they are again."""
        control_plane = self.cluster.control_plane
        cnvnet_objects.remove_policies(control_plane)
        try:
            yield
        finally:
            cnvnet_objects.install(control_plane)
            cnvnet_objects.wait_for_policies(control_plane)
