"""The plan of a sweep: a row for each thing that can have happened to a VM, a pod, a node or an address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from cnvnet.controller.steps import (
    COOL_RESERVATION,
    DELETE_LEASE,
    DELETE_RESERVATION,
    END_COOLDOWN,
    END_HOLDER,
    FINISH_LEASE,
    Absence,
)
from cnvnet.controller.sweep import Limits, Plan, plan
from cnvnet.kube.resources import (
    INSTANCES,
    IP_RESERVATIONS,
    IPAM_CLAIMS,
    NODES,
    PODS,
    VIRTUAL_MACHINES,
    VM_LEASES,
    Resource,
)
from tests.unit.controller.cluster import CLOCK, NAMESPACE, Cluster, cooling, holder, key

LIMITS = Limits(grace=60.0, pod_gone=600.0)
# Seconds between two sweeps.
INTERVAL = 30.0

Change = Callable[[Cluster], object]


def sweeps(cluster: Cluster, seconds: float, *, limits: Limits = LIMITS) -> Plan:
    """The last plan of a controller that has swept for so long."""
    memory: dict[tuple[str, ...], float] = {}
    now = 1000.0
    made = plan(cluster.snapshot(), memory, limits, now=now, clock=CLOCK)
    while now < 1000.0 + seconds:
        now += INTERVAL
        made = plan(cluster.snapshot(), made.memory, limits, now=now, clock=CLOCK)
    return made


def actions(made: Plan) -> list[str]:
    """What is done to which addresses or holder."""
    return sorted(f"{each.action} {each.holder or ','.join(each.addresses)}" for each in made.steps)


class Case(NamedTuple):
    name: str
    change: Change
    # What is done when it was so for as long as the grace period, and when for 10 minutes.
    soon: tuple[str, ...] = ()
    late: tuple[str, ...] | None = None


HOLDER = "web-pod-conta.pod1"
TARGET = "web-target-co.pod1"
IPS = "10.0.0.5,0a:58:0a:00:00:05"
MAC = "0a:58:0a:00:00:05"
DELETED = f"{DELETE_LEASE} {IPS}"
FINISHED = f"{FINISH_LEASE} {IPS}"
ENDED = f"{END_HOLDER} {HOLDER}"


def running(cluster: Cluster) -> None:
    cluster.add_running("web")


def stopped(cluster: Cluster) -> None:
    cluster.add_machine("web")
    cluster.add_lease("web")


def after(*changes: Change) -> Change:
    def change(cluster: Cluster) -> None:
        for each in changes:
            each(cluster)

    return change


def without(resource: Resource, name: str) -> Change:
    return lambda cluster: cluster.remove(resource, name)


def deleted_lease(cluster: Cluster) -> None:
    (document,) = (each for (kind, _, _), each in cluster.objects.items() if kind == VM_LEASES)
    document["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"


def migrating(cluster: Cluster) -> None:
    running(cluster)
    cluster.add_pod("web-target", instance="web", instance_uid="web-vmi")
    holders = [holder("web-pod"), holder("web-target", "n2", role="target")]
    cluster.add_lease("web", holders=holders)


def edit_lease(**fields: object) -> Change:
    def change(cluster: Cluster) -> None:
        for (kind, _, _), each in cluster.objects.items():
            if kind == VM_LEASES:
                each["spec"].update(fields)

    return change


def owned_by_claim(cluster: Cluster) -> None:
    owner = {
        "apiVersion": "k8s.cni.cncf.io/v1alpha1",
        "kind": "IPAMClaim",
        "name": "web.lan",
        "uid": "claim",
    }
    for (kind, _, _), each in cluster.objects.items():
        if kind == VM_LEASES:
            each["metadata"]["ownerReferences"] = [owner]


def mirror(cluster: Cluster) -> None:
    cluster.reserve_for_pod("static", uid="kubelets-own")
    cluster.add_pod("static", "mirror-uid")
    annotations = {"kubernetes.io/config.mirror": "kubelets-own"}
    cluster.get(PODS, "static")["metadata"]["annotations"] = annotations


def cools(address: str, until: int) -> Change:
    """A reservation of a lease that is finished."""

    def change(cluster: Cluster) -> None:
        name = cluster.reserve(key("web"), address, "old")
        cluster.get(IP_RESERVATIONS, name)["spec"]["cooling"] = {"until": until, "since": until - 60}

    return change


def reserve(address: str, lease_uid: str) -> Change:
    def change(cluster: Cluster) -> None:
        cluster.reserve(key("web"), address, lease_uid)

    return change


def leased(**fields: Any) -> Change:
    """A VM that is there, and its lease."""

    def change(cluster: Cluster) -> None:
        cluster.add_machine("web")
        cluster.add_lease("web", **fields)

    return change


def plain(pod: str, node: str = "n1", **fields: Any) -> Change:
    """The reservation of a pod that is no VM."""

    def change(cluster: Cluster) -> None:
        cluster.reserve_for_pod(pod, node, **fields)

    return change


def pod(name: str, uid: str = "", **fields: Any) -> Change:
    def change(cluster: Cluster) -> None:
        cluster.add_pod(name, uid, **fields)

    return change


def tainted(cluster: Cluster) -> None:
    cluster.add_node("n1", is_out_of_service=True)


def empty(cluster: Cluster) -> None:
    """Its nodes are there."""


GONE_VM = after(without(VIRTUAL_MACHINES, "web"), without(INSTANCES, "web"))
GONE_POD = without(PODS, "web-pod")
LOST_NODE = without(NODES, "n1")

VMS: list[Case] = [
    Case("nothing is there", empty),
    Case("a VM runs", running),
    Case("a VM is stopped", stopped),
    Case("a stopped VM is gone", after(stopped, without(VIRTUAL_MACHINES, "web")), (DELETED,)),
    Case(
        "a VM is gone whose instance and pod are still ending",
        after(running, without(VIRTUAL_MACHINES, "web")),
    ),
    Case("a VM is gone whose pod is still ending", after(running, GONE_VM)),
    Case(
        "a VM was deleted with its pods, and DEL came",
        after(stopped, without(VIRTUAL_MACHINES, "web")),
        (DELETED,),
    ),
    Case("a VM was deleted with its pods, and no DEL came", after(running, GONE_VM, GONE_POD), (), (ENDED,)),
    Case(
        "a VM without holders is gone, and a pod of an unknown instance of that name is there",
        after(stopped, without(VIRTUAL_MACHINES, "web"), pod("p", instance="web")),
    ),
    Case(
        "a VM was orphaned and runs on",
        after(running, without(VIRTUAL_MACHINES, "web"), lambda c: c.add_instance("web", "web-vmi")),
    ),
    Case(
        "a VM is gone, an instance of another name names it as its owner",
        after(
            stopped,
            without(VIRTUAL_MACHINES, "web"),
            lambda c: c.add_instance("other", "other-vmi", machine="web-uid"),
        ),
    ),
    Case(
        "a VM was orphaned, its instance runs on between two pods",
        after(stopped, without(VIRTUAL_MACHINES, "web"), lambda c: c.add_instance("web", "web-vmi")),
    ),
    Case(
        "a VM was made anew under its name and runs, the lease is the former one's",
        after(
            stopped,
            lambda c: c.add_machine("web", "other"),
            lambda c: c.add_instance("web", "other-vmi", machine="other"),
            pod("other-pod", instance="web", instance_uid="other-vmi"),
        ),
        (DELETED,),
    ),
    Case(
        "a VM was made anew under its name, the former one's pod holds the lease",
        after(running, lambda c: c.add_machine("web", "other")),
    ),
    Case(
        "a lease names no VM's UID", after(stopped, edit_lease(vmUID=""), without(VIRTUAL_MACHINES, "web"))
    ),
    Case(
        "a lease is never released",
        after(stopped, edit_lease(release="never"), without(VIRTUAL_MACHINES, "web")),
    ),
    Case(
        "a lease ends with its pods, which are gone", after(stopped, edit_lease(release="pod")), (DELETED,)
    ),
    Case("a lease ends with its pods, of which one is there", after(running, edit_lease(release="pod"))),
    Case(
        "a stand-alone instance is there",
        after(stopped, without(VIRTUAL_MACHINES, "web"), lambda c: c.add_instance("web", "web-uid")),
    ),
    Case(
        "the cluster does not have KubeVirt's kinds",
        after(stopped, lambda c: setattr(c, "has_kubevirt", False)),
    ),
    Case(
        "an IPAMClaim owns the lease of a VM that is gone",
        after(
            stopped,
            owned_by_claim,
            without(VIRTUAL_MACHINES, "web"),
            lambda c: c.add(
                IPAM_CLAIMS, {"metadata": {"name": "web.lan", "namespace": NAMESPACE, "uid": "claim"}}
            ),
        ),
    ),
    Case(
        "VM and IPAMClaim are gone",
        after(stopped, owned_by_claim, without(VIRTUAL_MACHINES, "web")),
        (DELETED,),
    ),
]
DELETIONS: list[Case] = [
    Case("the lease of a stopped VM is deleted", after(stopped, deleted_lease), (FINISHED,)),
    Case("the lease of a running VM is deleted", after(running, deleted_lease)),
    Case(
        "a VM was deleted while it ran, DEL came",
        after(stopped, deleted_lease, without(VIRTUAL_MACHINES, "web")),
        (FINISHED,),
    ),
    Case(
        "a VM was deleted while it migrated, one of two pods is left",
        after(migrating, deleted_lease, GONE_VM, GONE_POD, LOST_NODE),
        (ENDED,),
    ),
    Case(
        "a VM was deleted while it migrated, nothing of it is left but two lost nodes",
        after(
            migrating,
            deleted_lease,
            GONE_VM,
            GONE_POD,
            without(PODS, "web-target"),
            LOST_NODE,
            without(NODES, "n2"),
        ),
        (ENDED, f"{END_HOLDER} {TARGET}"),
    ),
    Case(
        "a deleted lease waits for another program's finalizer alone",
        after(
            stopped,
            deleted_lease,
            lambda c: c.get(VM_LEASES, c.snapshot().leases[0].stored.name)["metadata"].update(
                finalizers=["other/x"]
            ),
        ),
    ),
]
PODS_AND_NODES: list[Case] = [
    Case("a pod is gone, its node works", after(running, GONE_POD), (), (ENDED,)),
    Case("a pod is gone, and its node", after(running, GONE_POD, LOST_NODE), (ENDED,)),
    Case("a pod is gone, its node is out of service", after(running, GONE_POD, tainted), (ENDED,)),
    Case("a node is gone, its pod is still listed", after(running, LOST_NODE)),
    Case("a node is out of service, its pod is still listed", after(running, tainted)),
    Case(
        "a node is not ready, its pod is listed",
        after(
            running,
            lambda c: c.get(NODES, "n1").update(
                status={"conditions": [{"type": "Ready", "status": "Unknown"}]},
                spec={"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]},
            ),
        ),
    ),
    Case(
        "a pod was made anew under its name",
        after(running, pod("web-pod", "other", instance="web", instance_uid="web-vmi")),
        (),
        (ENDED,),
    ),
    Case(
        "a holder names no pod",
        leased(holders=[holder("web-pod")._replace(pod="", pod_uid="")]),
    ),
    Case(
        "a holder names no node, its pod is gone",
        leased(holders=[holder("web-pod", node="")]),
        (),
        (ENDED,),
    ),
]
RESERVATIONS: list[Case] = [
    Case(
        "the lease of a reservation is gone",
        reserve("10.0.0.6", "old"),
        (f"{DELETE_RESERVATION} 10.0.0.6",),
    ),
    Case(
        "the lease of a reservation is gone, its VM runs",
        after(
            reserve("10.0.0.6", "old"),
            lambda c: c.add_machine("web"),
            lambda c: c.add_instance("web", "web-vmi", machine="web-uid"),
        ),
    ),
    Case(
        "the lease of a reservation is gone, and another one has its name",
        after(running, reserve("10.0.0.6", "old")),
        (f"{DELETE_RESERVATION} 10.0.0.6",),
    ),
    Case(
        "a lease does not list what is reserved for it",
        after(running, reserve("10.0.0.6", "lease-web")),
        (f"{DELETE_RESERVATION} 10.0.0.6",),
    ),
    Case(
        "a lease has pending what is reserved for it",
        after(
            running,
            edit_lease(pending=["10.0.0.6"]),
            reserve("10.0.0.6", "lease-web"),
        ),
    ),
    Case("a reservation of a finished lease cools down", cools("10.0.0.6", CLOCK + 1)),
    Case(
        "a reservation of a finished lease has cooled down",
        cools("10.0.0.6", CLOCK),
        (f"{DELETE_RESERVATION} 10.0.0.6",),
    ),
    # Cooldowns in leases.
    Case(
        "an address of a lease cools down",
        leased(
            cooling=(cooling("web", "10.0.0.7", CLOCK + 1),),
        ),
    ),
    Case(
        "an address of a lease has cooled down",
        leased(cooling=(cooling("web", "10.0.0.7", CLOCK),)),
        (f"{END_COOLDOWN} {IPS}",),
    ),
    Case(
        "a lease that has ended cools down",
        leased(
            ips=(),
            mac="",
            cooling=(cooling("web", "10.0.0.7", CLOCK + 1),),
        ),
    ),
    Case(
        "a lease has nothing any more",
        leased(ips=(), mac=""),
        (f"{DELETE_LEASE} ",),
    ),
    # Pods that are no VM.
    Case(
        "the last address of a lease that has ended has cooled down",
        leased(ips=(), mac="", cooling=(cooling("web", "10.0.0.7", CLOCK),)),
        (f"{END_COOLDOWN} ",),
    ),
    Case(
        "a lease has holders and no address",
        after(
            leased(ips=(), mac="", holders=[holder("web-pod")]),
            without(VIRTUAL_MACHINES, "web"),
            deleted_lease,
        ),
    ),
    Case("a plain pod is there", after(pod("app"), plain("app"))),
    Case("a plain pod is gone", plain("app"), (), (f"{DELETE_RESERVATION} 10.0.0.9",)),
    Case(
        "a plain pod is gone, and its node",
        after(plain("app"), LOST_NODE),
        (f"{DELETE_RESERVATION} 10.0.0.9",),
    ),
    Case(
        "a plain pod is gone, its node is out of service",
        after(plain("app"), tainted),
        (f"{DELETE_RESERVATION} 10.0.0.9",),
    ),
    Case(
        "a pod of a StatefulSet was made anew under its name on another node",
        after(
            plain("db-0", uid="old"),
            plain("db-0", "n2", address="10.0.0.10", uid="new"),
            pod("db-0", "new"),
            LOST_NODE,
        ),
        (f"{DELETE_RESERVATION} 10.0.0.9",),
    ),
    Case("a static pod is known to the API by a mirror", mirror),
    Case(
        "the reservation of a plain pod has a cooldown",
        after(plain("app", cooldown=60), LOST_NODE),
        (f"{COOL_RESERVATION} 10.0.0.9",),
    ),
    # What a newer version has written.
    Case(
        "a lease has a field that is not known",
        after(stopped, edit_lease(pinned=True), without(VIRTUAL_MACHINES, "web")),
    ),
    Case(
        "a lease has a release that is not known",
        after(stopped, edit_lease(release="friday"), without(VIRTUAL_MACHINES, "web")),
    ),
]
CASES = [*VMS, *DELETIONS, *PODS_AND_NODES, *RESERVATIONS]


@pytest.mark.parametrize("case", CASES, ids=[each.name.replace(" ", "-") for each in CASES])
def test_what_a_sweep_does(case: Case) -> None:
    cluster = Cluster()
    case.change(cluster)
    assert actions(sweeps(cluster, LIMITS.grace)) == sorted(case.soon)
    assert actions(sweeps(cluster, LIMITS.pod_gone)) == sorted(case.soon if case.late is None else case.late)


def test_what_is_missing_once_is_not_missing_whatever_the_grace_period_is() -> None:
    cluster = Cluster()
    after(stopped, without(VIRTUAL_MACHINES, "web"))(cluster)
    limits = Limits(grace=0.0, pod_gone=0.0)
    first = sweeps(cluster, 0, limits=limits)
    assert first.steps == ()
    assert [each.step.action for each in first.waiting] == [DELETE_LEASE]
    assert actions(sweeps(cluster, INTERVAL, limits=limits)) == [DELETED]


def test_the_grace_period_begins_anew_when_what_was_missing_was_seen_again() -> None:
    cluster = Cluster()
    after(stopped, without(VIRTUAL_MACHINES, "web"))(cluster)
    missed = sweeps(cluster, LIMITS.grace - INTERVAL)
    cluster.add_machine("web")
    seen = plan(cluster.snapshot(), missed.memory, LIMITS, now=2000.0, clock=CLOCK)
    assert seen.memory == {}
    cluster.remove(VIRTUAL_MACHINES, "web")
    again = plan(cluster.snapshot(), seen.memory, LIMITS, now=2030.0, clock=CLOCK)
    assert (again.steps, [each.seconds for each in again.waiting]) == ((), [LIMITS.grace])


def test_a_node_that_was_made_anew_under_its_name_ends_no_pod_by_its_absence() -> None:
    cluster = Cluster()
    after(running, GONE_POD, LOST_NODE)(cluster)
    missed = sweeps(cluster, LIMITS.grace - INTERVAL)
    cluster.add_node("n1")
    made = plan(cluster.snapshot(), missed.memory, LIMITS, now=1000 + LIMITS.grace, clock=CLOCK)
    # The pod has been missing since the beginning, the node is not.
    (waiting,) = made.waiting
    assert (made.steps, waiting.seconds) == ((), LIMITS.pod_gone - LIMITS.grace)
    cluster.remove(NODES, "n1")
    made = plan(cluster.snapshot(), made.memory, LIMITS, now=1030 + LIMITS.grace, clock=CLOCK)
    (waiting,) = made.waiting
    assert (made.steps, waiting.seconds) == ((), LIMITS.grace)


def test_a_step_says_what_must_still_be_absent_when_it_is_done() -> None:
    cluster = Cluster()
    after(running, GONE_POD, LOST_NODE)(cluster)
    cluster.reserve(key("old"), "10.0.0.6", "lost")
    cluster.add_lease("gone", ips=("10.0.0.8",), mac="")
    owned_by_claim(cluster)
    by_action = {each.action: each for each in sweeps(cluster, LIMITS.grace).steps}
    pod = Absence(PODS, NAMESPACE, "web-pod", "web-pod-uid")
    assert by_action[END_HOLDER].absences == (pod, Absence(NODES, "", "n1", or_out_of_service=True))
    (lease,) = by_action[DELETE_RESERVATION].absences
    assert (lease.resource, lease.namespace, lease.uid) == (VM_LEASES, NAMESPACE, "lost")
    assert by_action[DELETE_LEASE].absences == (
        Absence(VIRTUAL_MACHINES, NAMESPACE, "gone", "gone-uid"),
        Absence(INSTANCES, NAMESPACE, "gone"),
        Absence(IPAM_CLAIMS, NAMESPACE, "web.lan", "claim"),
    )


def test_reasons_are_in_an_operators_words() -> None:
    cluster = Cluster()
    after(running, GONE_POD, LOST_NODE)(cluster)
    cluster.add_lease("gone", ips=("10.0.0.8",), mac="")
    assert {
        each.subject.rpartition("-")[0]: each.reason for each in sweeps(cluster, LIMITS.grace).steps
    } == {
        "VMLease tenant/web": "pod tenant/web-pod (web-pod-uid) is gone, and its node n1 is gone",
        "VMLease tenant/gone": "VM tenant/gone (gone-uid) is gone, and so are its pods",
    }
    cluster.add_node("n1")
    (late,) = (each for each in sweeps(cluster, LIMITS.pod_gone).steps if each.action == END_HOLDER)
    assert late.reason == "pod tenant/web-pod (web-pod-uid) has been gone for 600 s"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit_lease(pinned=True), "spec.pinned: a field that this version does not know"),
        (
            edit_lease(cooling=[{"ip": "10.0.0.7", "until": 1, "why": ""}]),
            "spec.cooling[].why: a field that",
        ),
        (edit_lease(release="friday"), "spec.release: 'friday', which this version does not know"),
        (edit_lease(ips=["10.0.0"]), "is not an IP address"),
        (edit_lease(vmUID=""), "it names no VM's UID: kept for a VM of that name"),
    ],
)
def test_what_is_left_alone_is_said_and_why(change: Change, said: str) -> None:
    cluster = Cluster()
    after(stopped, change, without(VIRTUAL_MACHINES, "web"))(cluster)
    made = sweeps(cluster, LIMITS.pod_gone)
    # Not that of a lease that is there, though it cannot be read.
    assert made.steps == ()
    (doubt,) = made.doubts
    assert doubt.subject.startswith("VMLease tenant/web-")
    assert said in doubt.reason
