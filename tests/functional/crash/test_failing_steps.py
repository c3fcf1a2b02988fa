"""Each step of an ADD fails in turn: nothing of its attachment stays, and what is shared does.

The steps that a system call's error can stop are found by strace; the others are brought about.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.functional.bridge.ipam import ScriptedIpam
from tests.functional.crash import strace
from tests.functional.crash.call_service import Service, keep, serving
from tests.functional.crash.node_state import AttachmentState, attachment_state, shared
from tests.functional.crash.strace import Moment
from tests.functional.crash.test_bridge_killed import POD, ROUTED, VM
from tests.functional.crash.test_static_ip_killed import CONFIG as ADDRESSES
from tests.harness import Node, Outcome, Sandbox

# There are many moments, and other tests beside this one.
pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]

# What each system call may really answer.
ERRORS: Final = {
    "write": "ENOSPC",
    "pwrite64": "ENOSPC",
    "fsync": "EIO",
    "fdatasync": "EIO",
    "ftruncate": "EIO",
    "openat": "ENOSPC",
    "mkdir": "ENOSPC",
    "rename": "EIO",
    "unlink": "EIO",
    "symlink": "ENOSPC",
    "sendto": "ENOBUFS",
    "sendmsg": "ENOBUFS",
    "setns": "ENOMEM",
}
# So that several processors share the moments.
SHARES: Final = 2


class Scene(NamedTuple):
    """A node, the pod that is to be attached, and the VM's former pod, which runs still."""

    service: Service
    pod: Sandbox
    former: Sandbox
    who: str

    def state(self) -> AttachmentState:
        return attachment_state(self.service.node, self.pod, self.former)

    def add(self, *within: str) -> Outcome:
        return self.service.process("ADD", "c1", self.pod, self.who, within=within)

    def delete(self) -> None:
        self.service.call("DEL", "c1", self.pod).ok()


@contextmanager
def scene(
    node: Node, who: str, config: Mapping[str, Any] = ROUTED, program: str = "cnv-bridge"
) -> Generator[Scene]:
    """A VM comes from container c0, so that there is a lease with a holder to go back to."""
    with serving(node, program, config) as service:
        made = Scene(service, node.pod(), node.pod(), who)
        if who:
            service.process("ADD", "c0", made.former, who).ok()
        yield made


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("who", [POD, VM], ids=["first-pod", "next-pod-of-a-vm"])
def test_whatever_the_kernel_refuses_nothing_is_left_of_a_port(node: Node, who: str, share: int) -> None:
    with scene(node, who) as here:
        # A store's first ADD makes its files, which the next ones find there: their moments are others.
        here.add().ok()
        here.delete()
        moments = strace.without_monotony(moments_of(here))
        before, common = here.state(), shared(node)
        for moment in moments[share::SHARES]:
            if who == POD:
                node.run("ip", "link", "delete", "br0", check=False)
                node.run("nft", "flush", "ruleset")
            refused(here, moment, before)
            if who == VM:
                assert shared(node) == common, moment


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("who", [POD, VM], ids=["first-pod", "next-pod-of-a-vm"])
def test_whatever_the_disk_refuses_no_lease_changes(node: Node, who: str, share: int) -> None:
    with scene(node, who, ADDRESSES, "static-ip") as here:
        moments = moments_of(here)
        copy = node.folder / "state-before"
        before = here.state()
        for moment in moments[share::SHARES]:
            keep(copy, node.statedir)
            refused(here, moment, before)


def test_what_one_del_could_not_delete_the_next_one_deletes(node: Node) -> None:
    with scene(node, VM) as here:
        before = without_times(here.state())
        service, log = here.service, node.folder / "log"
        service.call("ADD", "c1", here.pod, VM).ok()
        service.process("DEL", "c1", here.pod, within=strace.watching(log)).ok()
        for moment in strace.without_monotony(strace.moments(log, node.folder)):
            service.call("ADD", "c1", here.pod, VM).ok()
            within = strace.refusing(moment, ERRORS.get(moment.name, "EIO"))
            outcome = service.process("DEL", "c1", here.pod, within=within)
            try:
                if outcome.code:
                    assert outcome.error()["msg"]
                else:
                    # At most a file that could not be written tells of what has gone.
                    assert without_times(here.state())._replace(files=before.files) == before
                here.delete()
                assert without_times(here.state()) == before
            except AssertionError as e:
                raise AssertionError(f"{moment}: {outcome}") from e


def moments_of(here: Scene) -> list[Moment]:
    """All that an ADD changes. Afterwards it has not been."""
    node = here.service.node
    keep(node.statedir, node.folder / "state-before")
    log = node.folder / "log"
    here.add(*strace.watching(log)).ok()
    here.delete()
    keep(node.folder / "state-before", node.statedir)
    return strace.moments(log, node.folder)


def refused(here: Scene, moment: Moment, before: AttachmentState) -> None:
    """An ADD with one system call refused: nothing has changed, or the call was not needed for anything."""
    outcome = here.add(*strace.refusing(moment, ERRORS[moment.name]))
    try:
        if outcome.code == 0:
            check = here.service.call("CHECK", "c1", here.pod, here.who, more={"prevResult": outcome.ok()})
            assert (check.code, check.stdout) == (0, "")
        else:
            if not moment.text.startswith("1<"):  # stdout
                assert outcome.error()["msg"]
            assert here.state() == before
        here.delete()
        assert without_times(here.state()) == without_times(before)
    except AssertionError as e:
        raise AssertionError(f"{ERRORS[moment.name]} instead of {moment}: {outcome}") from e


def without_times(state: AttachmentState) -> AttachmentState:
    return state._replace(leases=tuple(lease._replace(since=0) for lease in state.leases))


def test_without_a_way_back_from_the_pod_the_record_tells_the_next_call(node: Node) -> None:
    with scene(node, VM) as here:
        moments = [moment for moment in moments_of(here) if moment.name == "setns"]
        before = here.state()
        # Not the last: a run in which no call has to be waited for goes there once less.
        never = strace.refusing(moments[-3], "EPERM")
        error = here.add(*never[:-1], f"{never[-1]}+").error()
        assert "internal error" in error["msg"]
        assert len(here.state().files) > len(before.files)
        here.delete()
        assert without_times(here.state()) == without_times(before)


# -- what goes wrong without strace


def assert_undone(here: Scene, outcome: Outcome, before: AttachmentState, *words: str) -> dict[str, Any]:
    """The error says so, nothing is left, and the same ADD would succeed without the obstacle."""
    error = outcome.error()
    for word in words:
        assert word in error["msg"]
    assert here.state() == before
    return error


def test_a_link_of_that_name_in_the_pod(node: Node) -> None:
    with scene(node, VM) as here:
        here.pod.run("ip", "link", "add", "eth0", "type", "bridge")
        before = here.state()
        assert_undone(here, here.add(), before, '("eth0")', "already exists")
        here.pod.run("ip", "link", "delete", "eth0")
        here.add().ok()


def test_a_gateway_that_conflicts(node: Node) -> None:
    with scene(node, VM) as here:
        node.run("ip", "addr", "del", "10.1.0.1/24", "dev", "br0")
        node.run("ip", "addr", "add", "10.9.9.1/8", "dev", "br0")
        before = here.state()
        outcome = here.add()
        assert_undone(here, outcome, before, '"br0" already has an IP address different from 10.1.0.1/24')
        assert "10.9.9.1/8" in node.addresses("br0")
        node.run("ip", "addr", "del", "10.9.9.1/8", "dev", "br0")
        here.add().ok()


def test_an_address_that_another_vm_holds_is_refused(node: Node) -> None:
    with scene(node, VM) as here:
        taken = node_addresses(here)[0]
        before = here.state()
        stranger = here._replace(who=f"VM_NAME=stranger;IP={taken}")
        error = assert_undone(here, stranger.add(), before, taken, "VM default/vm-a", "c0")
        assert error["code"] == 7


def test_a_pool_without_free_addresses(node: Node) -> None:
    config = {**ROUTED, "ipam": ADDRESSES["ipam"]}
    with scene(node, VM, config) as here:
        for number in range(2):
            here.service.process("ADD", f"d{number}", node.pod()).ok()
        before = here.state()
        error = assert_undone(here._replace(who=POD), here._replace(who=POD).add(), before, "10.1.0.11")
        assert error["code"] == 11
        here.add().ok()


def test_a_route_the_kernel_does_not_take(node: Node) -> None:
    routes = [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]
    with scene(node, VM) as here:
        before = here.state()
        with serving(
            node, "cnv-bridge", {**ROUTED, "ipam": {**ROUTED["ipam"], "routes": routes}}
        ) as service:
            assert_undone(here, here._replace(service=service).add(), before, "198.51.100.0/24")
        here.add().ok()


def test_an_address_that_the_former_pod_answers_for(node: Node) -> None:
    with scene(node, VM, {**ROUTED, "enabledad": True}) as here:
        before = here.state()
        outcome = here.add()
        assert_undone(here, outcome, before, node_addresses(here)[1], "DADFAILED")
        here.former.run("ip", "link", "set", "eth0", "down")
        here.add().ok()


def test_a_port_that_does_not_come_up(node: Node) -> None:
    with scene(node, VM) as here:
        # The pod's end goes up by one of the last messages, and is held down from then on.
        last = [moment for moment in moments_of(here) if moment.name == "sendto"][-1]
        before = here.state()
        down = "while :; do ip link set eth0 down 2>/dev/null; sleep 0.01; done"
        with here.pod.popen("sh", "-c", down, stdin=subprocess.DEVNULL) as loop:
            try:
                outcome = here.add(*strace.delaying(last, "1s"))
            finally:
                loop.kill()
        assert_undone(here, outcome, before, "bridge port in error state")
        here.add().ok()


def test_an_address_manager_that_refuses_or_is_missing(node: Node) -> None:
    foreign = ScriptedIpam(node)
    foreign.refuses("ADD", 123, "the pool is closed")
    for config, message in (
        (foreign.config, "the pool is closed"),
        ({"type": "no-such-ipam"}, "no-such-ipam"),
    ):
        with serving(node, "cnv-bridge", {**ROUTED, "ipam": config}) as service:
            here = Scene(service, node.pod(), node.pod(), POD)
            before = here.state()
            within = ("env", f"CNI_PATH={foreign.cni_path}")
            assert_undone(here, here.add(*within), before, message)
    assert foreign.commands == ["ADD", "DEL"]


@pytest.mark.parametrize(
    "script",
    [
        "mount --bind $1 $1 && mount -o remount,bind,ro $1",
        "mount -t tmpfs -o size=4k none $1 && cat /dev/zero >$1/full",
        "mount -t tmpfs -o nr_inodes=3 none $1 && mkdir $1/attachments && touch $1/full",
    ],
    ids=["read-only", "full", "no-inodes"],
)
def test_records_that_cannot_be_written(node: Node, script: str) -> None:
    with scene(node, VM) as here:
        before = here.state()
        outcome = here.add(*elsewhere(f"{{ {script}; }} 2>/dev/null; exec $2", node.rundir))
        error = assert_undone(here, outcome, before, str(node.rundir))
        assert error["code"] == 5
        here.add().ok()


def test_a_full_disk_below_the_leases(node: Node) -> None:
    with scene(node, VM) as here:
        before = here.state()
        copy = node.folder / "copy"
        script = f"""
            cp -a $1 {copy} && mount -t tmpfs -o size=600k none $1 && cp -a {copy}/. $1 || exit 9
            rm -r {copy}
            cat /dev/zero >$1/full 2>/dev/null
            $2
            code=$?; rm $1/full; cp -a $1 {copy}; exit $code
        """
        outcome = here.add(*elsewhere(script, node.statedir))
        shutil.rmtree(node.statedir)
        copy.rename(node.statedir)
        error = assert_undone(here, outcome, before, "leases.db", "disk is full")
        assert error["code"] == 5
        here.add().ok()


def test_no_nft(node: Node) -> None:
    """Once the tables are there, no call needs it: this is the first ADD."""
    libraries = sorted({path.resolve() for path in Path("/usr/lib").glob("*/libnftables.so.*")})
    script = " && ".join(f"mount --bind /dev/null {path}" for path in libraries)
    with scene(node, POD) as here:
        before = here.state()
        outcome = here.add(*elsewhere(f"{script or ':'} && PATH=$1 exec $2", node.folder / "empty"))
        assert_undone(here, outcome, before, "nft")
        here.add().ok()


def elsewhere(script: str, folder: Path) -> tuple[str, ...]:
    """A `within` that runs $2, the executable, in a mount namespace of its own; $1 is the folder."""
    return ("unshare", "--mount", "sh", "-c", script, "sh", str(folder))


def node_addresses(here: Scene) -> list[str]:
    """The addresses of the VM."""
    return [ip for lease in here.state().leases if "/vm-a/" in lease.key for ip in lease.ips]
