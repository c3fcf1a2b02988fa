"""Leases over any sequence of calls: no address twice, none lost, whatever comes after what."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import Address
from cnvnet.ipam.lease import POLICIES, Lease
from cnvnet.vm.identity import ACTIVE, TARGET, TEMP
from tests.fakes.kubernetes_store import disagreements
from tests.unit.ipam.store.conformance import STORES, Desk, Factory


class Pod(NamedTuple):
    """A live pod and the addresses that it was given."""

    vm: str
    uid: str
    ips: tuple[Address, ...]
    mac: str
    role: str


VMS = st.sampled_from(["vm1", "vm2", "vm3", "vm4"])


UIDS = st.sampled_from(["", "u1", "u2"])


CONTAINERS = st.sampled_from([f"c{number}" for number in range(6)])


WISHES = st.sampled_from([(), (), (), ("10.0.0.2",), ("10.0.0.3",), ("10.0.0.5",)])


MACS = st.sampled_from(["", "", "", "0a:63:00:00:00:01", "0a:63:00:00:00:02"])


class Cluster(RuleBasedStateMachine):
    """VMs start, stop, migrate, are recreated; pods die; ADDs fail: four VMs, five addresses."""

    open_store: Factory
    # Whether an ADD that is undone gives a dead container back what it had, whose name it has used.
    remembers_the_dead = True

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.desk = Desk(self.open_store(self.folder))
        self.pods: dict[str, Pod] = {}
        self.serial = 0

    def teardown(self) -> None:
        if hasattr(self, "desk"):
            self.desk.store.close()
            shutil.rmtree(self.folder)

    @rule(
        vm=VMS,
        uid=UIDS,
        container=CONTAINERS,
        role=st.sampled_from([ACTIVE, ACTIVE, TARGET, TEMP]),
        ips=WISHES,
        mac=MACS,
        release=st.sampled_from(POLICIES),
        cooldown=st.sampled_from([0, 0, 30]),
        fails=st.booleans(),
    )
    def add(
        self,
        vm: str,
        uid: str,
        container: str,
        role: str,
        ips: tuple[str, ...],
        mac: str,
        release: str,
        cooldown: int,
        fails: bool,
    ) -> None:
        before = self.desk.lease(vm)
        known, rows, dead = self.pods.get(container), self.desk.rows(), set(self.desk.dead)
        if known is not None and known.vm != vm:
            return  # A live container does not change its VM; a test of its own covers it.
        if role == TARGET and (container in dead or (known is not None and known.role != TARGET)):
            return  # A migration's target is one from its beginning.
        self.desk.dead.discard(container)  # The name is a new container's now.
        try:
            granted = self.desk.add(
                vm, container, uid, role=role, ips=ips, mac=mac, release=release, cooldown=cooldown
            )
        except CNIError as e:
            self.refused(e, vm, before)
            return
        lease = granted.lease
        if before is not None and before.ips and not ips and (not uid or uid == before.vm_uid):
            assert lease.ips == before.ips
            assert mac or lease.mac == before.mac
        if ips and role != TARGET:
            assert lease.ips == tuple(map(ip_address, ips))
        if fails:
            self.desk.revert(granted, container)
            self.desk.dead = dead
            if container not in dead or self.remembers_the_dead:
                assert self.desk.rows() == rows
            return
        self.pods[container] = Pod(vm, uid, lease.ips, lease.mac, role)

    def refused(self, error: CNIError, vm: str, before: Lease | None) -> None:
        assert error.code in (7, 11)
        assert self.desk.lease(vm) == before
        if "no IP addresses" in error.details:
            assert self.taken() == {IPv4Address(f"10.0.0.{last}") for last in range(2, 7)}

    @rule(container=CONTAINERS)
    def delete(self, container: str) -> None:
        self.desk.delete(container)
        self.pods.pop(container, None)

    @rule(container=CONTAINERS)
    def die_unnoticed(self, container: str) -> None:
        """The pod is gone with its node; neither DEL nor GC says so."""
        if self.pods.pop(container, None) is not None:
            self.desk.dead.add(container)

    @rule()
    def collect(self) -> None:
        self.desk.collect(*self.pods)

    @rule(seconds=st.sampled_from([1, 10, 40]))
    def wait(self, seconds: int) -> None:
        self.desk.now += seconds

    @rule()
    def restart_the_program(self) -> None:
        self.desk.store.close()

    @invariant()
    def two_vms_never_share(self) -> None:
        if not hasattr(self, "pods"):
            return
        for name, one in self.pods.items():
            for other_name, other in self.pods.items():
                if one.vm != other.vm:
                    assert not set(one.ips) & set(other.ips), (name, other_name)
                    assert one.mac != other.mac, (name, other_name)
                elif one.uid and other.uid:
                    assert one.uid == other.uid, (name, other_name)

    @invariant()
    def every_live_pod_still_holds_what_it_was_given(self) -> None:
        if not hasattr(self, "pods"):
            return
        for container, pod in self.pods.items():
            lease = self.desk.lease(pod.vm)
            assert lease is not None
            assert lease.holder(container, "eth0") is not None
            assert set(pod.ips) <= set(lease.ips)

    def taken(self) -> set[Address]:
        rows = self.desk.contents()
        return {*(ip for each in rows.leases for ip in each.ips), *(each.ip for each in rows.cooldowns)}


class SqliteCluster(Cluster):
    """The same with the embedded store, whose runs have to follow the addresses."""

    open_store = staticmethod(STORES["sqlite"])

    @invariant()
    def the_runs_are_the_addresses(self) -> None:
        if hasattr(self, "desk") and Path(self.desk.store.name).exists():
            assert {IPv4Address(value) for value in self.runs()} == self.taken()

    def runs(self) -> list[int]:
        values: list[int] = []
        with closing(sqlite3.connect(self.desk.store.name)) as reader:
            for first, last in reader.execute("SELECT first, last FROM runs ORDER BY first"):
                begin, end = int.from_bytes(first[1:], "big"), int.from_bytes(last[1:], "big")
                assert not values or values[-1] + 1 < begin  # sorted, apart, and as long as can be
                values.extend(range(begin, end + 1))
        return values


class RerunCluster(Cluster):
    """The same with a store that runs each action twice."""

    open_store = staticmethod(STORES["sqlite-rerun"])


TestCluster = SqliteCluster.TestCase


TestCluster.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class KubernetesCluster(Cluster):
    """The same with objects of an API server in memory, which agree at any time."""

    open_store = staticmethod(STORES["kubernetes"])
    # It ends a holder without a look at the lease; no runtime gives an id to a second container.
    remembers_the_dead = False

    @invariant()
    def the_objects_agree(self) -> None:
        if hasattr(self, "desk"):
            assert disagreements() == []


TestRerunCluster = RerunCluster.TestCase


TestRerunCluster.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
TestKubernetesCluster = KubernetesCluster.TestCase
TestKubernetesCluster.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
