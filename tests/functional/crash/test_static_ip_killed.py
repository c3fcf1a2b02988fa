"""static-ip killed before each of its writes, syncs, renames and the like: what comes next repairs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest

from tests.functional.crash import strace
from tests.functional.crash.call_service import Service, addresses, keep, serving
from tests.functional.crash.node_state import files, held, leases
from tests.functional.crash.strace import Moment
from tests.harness import Node

# There are many moments, and other tests beside this one.
pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]

# One for each container that asks, and none to lose.
CONFIG: Final[dict[str, Any]] = {
    "cniVersion": "1.1.0",
    "name": "blue",
    "ipam": {
        "type": "static-ip",
        "subnet": "10.1.0.0/24",
        "rangeStart": "10.1.0.11",
        "rangeEnd": "10.1.0.13",
    },
}
VM: Final = "VM_NAME=vm-a;VM_UID=1"
NEIGHBOUR: Final = "VM_NAME=neighbour;VM_UID=2"
POD: Final = ""
# So that several processors share the moments of one case.
SHARES: Final = 3


class Case(NamedTuple):
    """What is there, and the call that is killed: `command` for `container` c1 of the VM or pod `who`."""

    command: str
    who: str
    prepare: Callable[[Service], None]


def nothing(service: Service) -> None:
    assert not service.node.statedir.exists()


def a_neighbour(service: Service) -> None:
    service.process("ADD", "c-neighbour", args=NEIGHBOUR).ok()


def a_stopped_vm(service: Service) -> None:
    a_neighbour(service)
    service.process("ADD", "c0", args=VM).ok()
    service.process("DEL", "c0").ok()


def a_running_vm(service: Service) -> None:
    a_neighbour(service)
    service.process("ADD", "c1", args=VM).ok()


def a_running_pod(service: Service) -> None:
    a_neighbour(service)
    service.process("ADD", "c1").ok()


def a_vm_at_a_long_log(service: Service) -> None:
    """The next transaction copies the write-ahead log into the database."""
    a_neighbour(service)
    log = service.node.statedir / "leases.db-wal"
    while log.stat().st_size < 98 * 4120:
        service.process("ADD", "c0", args=VM).ok()
        service.process("DEL", "c0").ok()


CASES: Final = {
    "first-add": Case("ADD", VM, nothing),
    "add-of-a-known-vm": Case("ADD", VM, a_stopped_vm),
    "add-of-a-pod": Case("ADD", POD, a_neighbour),
    "add-that-copies-the-log": Case("ADD", VM, a_vm_at_a_long_log),
    "del-of-a-vm": Case("DEL", VM, a_running_vm),
    "del-of-a-pod": Case("DEL", POD, a_running_pod),
}


def again(service: Service, case: Case) -> None:
    service.process(case.command, "c1", args=case.who).ok()


def deleted(service: Service, case: Case) -> None:
    service.call("DEL", "c1").ok()
    service.call("DEL", "c1").ok()


def collected(service: Service, case: Case) -> None:
    service.call("GC", more={"cni.dev/valid-attachments": []}).ok()
    held = [lease for lease in leases(service.node) if lease.holders]
    assert held == []


def overtaken(service: Service, case: Case) -> None:
    """Others are served before the runtime tries again."""
    theirs = addresses(service.call("ADD", "c-other"))
    service.call(case.command, "c1", args=case.who).ok()
    assert theirs == addresses(service.call("ADD", "c-other"))
    service.call("DEL", "c-other").ok()


REPAIRS: Final = (again, deleted, collected, overtaken)


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_killed_at_any_moment_no_pod_loses_an_address_or_shares_one(
    node: Node, case: Case, share: int
) -> None:
    with serving(node, "static-ip", CONFIG) as service:
        for moment in killed_at_each(service, case, share):
            keep(node.statedir, node.folder / "after")
            for repair in REPAIRS:
                keep(node.folder / "after", node.statedir)
                try:
                    repair(service, case)
                    assert_well(service, case)
                except AssertionError as e:
                    raise AssertionError(f"{repair.__name__} after a kill at {moment}") from e


def killed_at_each(service: Service, case: Case, share: int) -> Iterator[Moment]:
    """Every moment of this share of the case, the store as it is then."""
    node, before, log = service.node, service.node.folder / "before", service.node.folder / "log"
    case.prepare(service)
    keep(node.statedir, before)
    service.process(case.command, "c1", args=case.who, within=strace.watching(log)).ok()
    moments = strace.moments(log, node.folder)
    assert len(moments) > 20
    for moment in moments[share::SHARES]:
        keep(before, node.statedir)
        outcome = service.process(case.command, "c1", args=case.who, within=strace.killing(moment))
        assert outcome.code == -9, f"it went past {moment}"
        leases(node)  # are sound
        yield moment


def assert_well(service: Service, case: Case) -> None:
    """All three containers have an address of their own, and it can all be given back."""
    known = {lease.key: lease.ips for lease in leases(service.node)}
    service.call("DEL", "c1").ok()
    own = addresses(service.call("ADD", "c2", args=case.who))
    if case.who:
        assert tuple(own) == known.get("blue/default/vm-a/eth0", tuple(own))
        assert own == addresses(service.call("ADD", "c3", args=case.who))
    theirs = addresses(service.call("ADD", "c-other"))
    neighbours = addresses(service.call("ADD", "c-neighbour", args=NEIGHBOUR))
    assert tuple(neighbours) == known.get("blue/default/neighbour/eth0", tuple(neighbours))
    assert len({*own, *theirs, *neighbours}) == 3
    for container in ("c2", "c3", "c-other", "c-neighbour"):
        service.call("DEL", container).ok()
    assert held(service.node) == []
    assert files(service.node) == []
