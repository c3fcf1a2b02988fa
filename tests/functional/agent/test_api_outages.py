"""The executables and a running agent while the Kubernetes API is away, refuses, or has other credentials.

An ADD says so in time and leaves nothing, other networks' calls go on meanwhile, a DEL succeeds, and what it
could not write is written when the API is back: addresses are free soon, whatever became of the agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fakes.api_server import Action, ApiServer, Asked, black_hole, refuse
from tests.fakes.certificates import Authority
from tests.fakes.launchers import cni_args
from tests.functional.agent.cluster_node import LAN, NODE_NAME, Attached, ClusterNode, cluster_node
from tests.functional.agent.launcher_calls import cni
from tests.functional.agent.own_agent import RunningAgent, eventually
from tests.harness import Node, Outcome, a_node, installed

pytestmark = pytest.mark.alone

# Seconds in which calls are answered whatever the API does, and after which addresses are free again.
ADD, DEL, FREE = 10.0, 3.0, 30.0


@pytest.fixture
def cluster(node: Node, tmp_path: Path) -> Iterator[ClusterNode]:
    with cluster_node(node, tmp_path) as made:
        yield made


# ---- what goes wrong, until the end of the block ----


@contextmanager
def refused(cluster: ClusterNode) -> Generator[None]:
    cluster.server.stop()
    try:
        yield
    finally:
        cluster.start_server()


@contextmanager
def dropped(cluster: ClusterNode) -> Generator[None]:
    """Packets to the server vanish: those of connections that are open, too."""
    port = cluster.server.url.rpartition(":")[2]
    chain = f"chain in {{ type filter hook input priority 0; tcp dport {port} drop; }}"
    cluster.node.run("nft", f"table inet silent {{ {chain}; }}")
    try:
        yield
    finally:
        cluster.node.run("nft", "delete table inet silent")


@contextmanager
def answers(action: Action, cluster: ClusterNode) -> Generator[None]:
    """All requests."""
    cluster.server.inject(action, times=500)
    try:
        yield
    finally:
        cluster.server.clear_faults()
        cluster.server.hang_up()


@contextmanager
def expired(cluster: ClusterNode) -> Generator[None]:
    """The token is not known any more, until the next one is in its file."""
    cluster.server.tokens = {"second"}
    yield
    cluster.token.write_text("second")


@contextmanager
def another_authority(cluster: ClusterNode) -> Generator[None]:
    """The server has got a certificate by an authority that the node's file lacks, until it has it."""
    other = Authority(cluster.folder, "other")
    cluster.server.present(*other.issue("again"))
    cluster.server.hang_up()
    yield
    cluster.trust(other)


class Fault(NamedTuple):
    of: Callable[[ClusterNode], AbstractContextManager[None]]
    # What the error of an ADD says.
    reason: str
    # Whether an ADD waits.
    hangs: bool = False


FAULTS = {
    "refused": Fault(refused, "connection refused"),
    "dropped": Fault(dropped, "in time", hangs=True),
    "silent": Fault(partial(answers, black_hole), "no answer in time", hangs=True),
    "429": Fault(
        partial(answers, refuse(429, "TooManyRequests", "slow down", retry_after=1)),
        "429 TooManyRequests: slow down",
        hangs=True,
    ),
    "500": Fault(partial(answers, refuse(500, "InternalError", "etcd")), "500 InternalError: etcd"),
    "403": Fault(partial(answers, refuse(403, "Forbidden", "no")), "403 Forbidden: no"),
    "expired": Fault(expired, "401 Unauthorized"),
    "authority": Fault(another_authority, "the server's certificate cannot be verified"),
}


def three(cluster: ClusterNode) -> list[Attached]:
    """A VM that keeps its addresses, one that has them as long as its pod, and a pod that is no VM."""
    return [
        cluster.attach(cluster.launchers.start("vm-a")),
        cluster.attach(cluster.launchers.start("vm-primary-br"), release="pod"),
        cluster.attach(cluster.launchers.add_pod("web")),
    ]


def deleted_in_time(cluster: ClusterNode, attached: list[Attached]) -> None:
    begun = time.monotonic()
    for each in [cluster.start("DEL", each) for each in attached]:
        each.outcome().ok()
    assert time.monotonic() - begun < DEL
    assert {cluster.holds()[each.container_id] for each in attached} == {"releasing"}


def free_soon(cluster: ClusterNode) -> None:
    assert eventually(lambda: not cluster.remains(), seconds=FREE), cluster.remains()
    (kept,) = cluster.leases()
    assert kept.key.vm == "vm-a"


def calls_of_others(cluster: ClusterNode) -> None:
    """ADD and DEL in networks that need no API."""
    pod = cluster.node.pod()
    leased = {"ipam": {"type": "static-ip", "subnet": "10.2.0.0/24", "nodeLocal": True, "store": "sqlite"}}
    for name, config in (("l2", {}), ("local", leased)):
        for command in ("ADD", "DEL"):
            keys = {"name": name, "bridge": f"br-{name}", **config}
            cni(cluster.node, command, pod, config=keys, container_id=f"other-{name}").ok()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_calls_are_answered_in_time_and_addresses_are_free_when_the_api_is_back(
    cluster: ClusterNode, fault: Fault
) -> None:
    with cluster.running_agent() as agent:
        attached = three(cluster)
        late = cluster.new(cluster.launchers.add_pod("late"))
        with fault.of(cluster):
            begun = time.monotonic()
            add = cluster.start("ADD", late)
            if fault.hangs:
                assert eventually(lambda: "calls: 1 running" in agent.http("/healthz?verbose")[1])
            calls_of_others(cluster)
            deleted_in_time(cluster, attached)
            # All of these were answered while it waited.
            assert not fault.hangs or add.process.poll() is None
            error = add.outcome().error()
            assert time.monotonic() - begun < ADD
            assert error["code"] == 11
            assert cluster.server.url in error["msg"]
            assert fault.reason in error["msg"]
            assert agent.http("/healthz") == (200, "ok\n")
        free_soon(cluster)
        cluster.call("ADD", late).ok()
        cluster.call("DEL", late).ok()


@pytest.mark.parametrize("fault", [FAULTS["refused"], FAULTS["silent"]], ids=["refused", "silent"])
def test_addresses_are_free_though_the_agent_was_killed_and_the_node_rebooted_meanwhile(
    cluster: ClusterNode, tmp_path: Path, fault: Fault
) -> None:
    with cluster.running_agent() as agent:
        first, second, third = three(cluster)
        with fault.of(cluster):
            deleted_in_time(cluster, [first, second])
        agent.kill()
    (tmp_path / "again").mkdir()
    with a_node(tmp_path / "again") as again, ExitStack() as away:
        cluster.server.stop()
        cluster.rebooted(again)
        # In the namespace of the node as it is now.
        cluster.start_server()
        away.enter_context(fault.of(cluster))
        with cluster.running_agent():
            # The runtime clears up what it knows from before.
            begun = time.monotonic()
            cluster.call("DEL", third, "/run/netns/gone").ok()
            assert time.monotonic() - begun < DEL
            assert set(cluster.holds().values()) == {"releasing"}
            away.close()
            free_soon(cluster)


def test_an_add_that_is_cut_off_between_its_writes_is_answered_in_time_and_holds_nothing(
    cluster: ClusterNode,
) -> None:
    def fall_silent(server: ApiServer, asked: Asked) -> None:
        server.inject(black_hole, times=500)
        black_hole(server, asked)

    with cluster.running_agent():
        cluster.server.inject(fall_silent, verb="create", plural="ipreservations")
        begun = time.monotonic()
        error = cluster.call("ADD", cluster.new(cluster.launchers.start("vm-a"))).error()
        assert time.monotonic() - begun < ADD
        assert error["code"] == 11
        cluster.server.clear_faults()
        cluster.server.hang_up()
        # The VM has a lease, of which nothing is counted on that is not reserved.
        free_soon(cluster)


def test_executables_without_an_agent_are_answered_in_time_and_an_agent_does_the_rest(
    cluster: ClusterNode,
) -> None:
    alone = {"CNVNET_AGENT": "off", "CNVNET_KUBECONFIG": str(cluster.kubeconfig), "CNVNET_NODE": NODE_NAME}

    def call(command: str, of: Attached) -> Outcome:
        return cluster.node.cni(
            installed("cnv-bridge"),
            command,
            of.config,
            of.sandbox,
            container_id=of.container_id,
            ifname=LAN,
            args=cni_args(of.pod),
            env=alone,
        )

    attached = cluster.new(cluster.launchers.start("vm-primary-br"), release="pod")
    call("ADD", attached).ok()
    with answers(black_hole, cluster):
        begun = time.monotonic()
        error = call("ADD", cluster.new(cluster.launchers.add_pod("late"))).error()
        assert time.monotonic() - begun < ADD
        assert (error["code"], cluster.server.url in error["msg"]) == (11, True), error
        begun = time.monotonic()
        call("DEL", attached).ok()
        assert time.monotonic() - begun < DEL
        assert cluster.holds() == {attached.container_id: "releasing"}
    with cluster.running_agent():
        assert eventually(lambda: not cluster.remains(), seconds=FREE), cluster.remains()


def test_a_token_and_an_authority_are_replaced_under_a_running_agent(cluster: ClusterNode) -> None:
    other = Authority(cluster.folder, "other")
    added: list[Attached] = []

    def add() -> None:
        added.append(cluster.attach(cluster.launchers.add_pod(f"web{len(added)}")))

    with cluster.running_agent() as agent:
        add()
        # As with a bound token: the kubelet replaces the file, and the former one ends later.
        cluster.server.tokens = {"first", "second"}
        cluster.token.write_text("second")
        add()
        cluster.server.tokens = {"second"}
        add()
        # As kube-root-ca.crt changes: first both are trusted, then the server changes, then the other goes.
        cluster.trust(cluster.authority, other)
        add()
        cluster.server.present(*other.issue("again"))
        cluster.server.hang_up()
        add()
        cluster.trust(other)
        cluster.server.hang_up()
        add()
        for each in added:
            cluster.call("DEL", each).ok()
        assert cluster.holds() == {}
        assert failures(agent) == []


def failures(agent: RunningAgent) -> list[object]:
    return [event for event in agent.events() if event["level"] in ("warning", "error")]
