"""cnv-bridge killed before each of its changes to kernel, records, leases: what comes next repairs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pytest

from tests.functional.crash import strace
from tests.functional.crash.call_service import Service, keep, serving
from tests.functional.crash.node_state import AttachmentState, attachment_state
from tests.functional.crash.strace import Moment
from tests.harness import Node, Sandbox, peer

# There are many moments, and other tests beside this one.
pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]

GUARDED: Final[dict[str, Any]] = {
    "cniVersion": "1.1.0",
    "name": "blue",
    "type": "cnv-bridge",
    "bridge": "br0",
    "macspoofchk": True,
    "ipspoofchk": True,
    "ipam": {"type": "static-ip", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]},
}
ROUTED: Final[dict[str, Any]] = {**GUARDED, "isGateway": True, "ipMasq": True}
# An address manager that finds the port there; its leases are kept beside the records.
FOREIGN: Final[dict[str, Any]] = {
    **ROUTED,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]},
}
VM: Final = "VM_NAME=vm-a;VM_UID=1"
POD: Final = ""


class Case(NamedTuple):
    """The call that is killed, for c1 of the VM or pod `who`, on a node that is `new` or in use."""

    command: str
    config: dict[str, Any]
    who: str
    new: bool


class Scene(NamedTuple):
    """A node with two pods, and what is there before the call."""

    service: Service
    case: Case
    pod: Sandbox
    other: Sandbox

    def delete(self, container: str, pod: Sandbox | str) -> None:
        self.service.call("DEL", container, pod).ok()

    def add(self, container: str, pod: Sandbox) -> None:
        """An ADD that must succeed, and leave all that it should."""
        result = self.service.call("ADD", container, pod, self.case.who).ok()
        self.service.call("CHECK", container, pod, self.case.who, more={"prevResult": result}).ok()


def again(scene: Scene) -> None:
    """The runtime tries once more, and deletes it later."""
    case, pod = scene.case, scene.pod
    complete = case.command == "ADD" and recorded(scene.service.node, "c1") == "added"
    outcome = scene.service.process(case.command, "c1", pod, case.who)
    if complete:
        # Killed with everything done: the plugin cannot tell that its caller does not know.
        assert "already exists" in outcome.error()["msg"]
        scene.delete("c1", pod)
        outcome = scene.service.process(case.command, "c1", pod, case.who)
    result = outcome.ok()
    if case.command == "ADD":
        scene.service.call("CHECK", "c1", pod, case.who, more={"prevResult": result}).ok()
        assert len(attachment_state(scene.service.node).links) == 1 if case.new else 2
        scene.delete("c1", pod)


def recorded(node: Node, container: str) -> str:
    """The state in a container's record, "" if there is none."""
    texts = [path.read_text() for path in node.rundir.glob("attachments/*.json")]
    records = [json.loads(text) for text in texts if text]
    return next((record["state"] for record in records if record["containerid"] == container), "")


def deleted(scene: Scene) -> None:
    """The runtime gives up; a second time too, and the pod's namespace may be unknown to it by then."""
    scene.delete("c1", "")
    scene.delete("c1", scene.pod)


def collected(scene: Scene) -> None:
    """The runtime never mentions the attachment again, until there is another one."""
    valid = [{"containerID": "neighbour", "ifname": "eth0"}]
    scene.service.call("GC", pod="", more={"cni.dev/valid-attachments": valid}).ok()
    scene.add("c2", scene.pod)
    scene.delete("c2", scene.pod)


def overtaken(scene: Scene) -> None:
    """The VM's next pod comes first, and what is deleted afterwards is not its own."""
    node, other = scene.service.node, scene.other
    scene.add("c2", other)
    scene.delete("c1", scene.pod)
    result = scene.service.call("ADD", "c2", other, scene.case.who)
    assert "already exists" in result.error()["msg"], "an attachment that works is not made once more"
    assert (len(attachment_state(node).links), len(attachment_state(node, other).inside)) == (2, 1)
    scene.delete("c2", other)


# Each moment of a first ADD with both of its repairs is tried with the plugin on a kernel in memory; it is
# the longest case, so here they share its moments.
ALL: Final = slice(None)
EVEN: Final = slice(0, None, 2)
ODD: Final = slice(1, None, 2)

FIRST_ADD: Final = Case("ADD", ROUTED, POD, True)
ADD_OF_A_VM: Final = Case("ADD", ROUTED, VM, False)
ADD_WITHOUT_GATEWAY: Final = Case("ADD", GUARDED, VM, False)
DEL_OF_A_VM: Final = Case("DEL", ROUTED, VM, False)
DEL_OF_A_POD: Final = Case("DEL", GUARDED, POD, False)
FOREIGN_ADD: Final = Case("ADD", FOREIGN, POD, False)
FOREIGN_DEL: Final = Case("DEL", FOREIGN, POD, False)


@pytest.mark.parametrize(
    ("case", "repair", "part"),
    [
        pytest.param(FIRST_ADD, again, EVEN, id="first-add-again"),
        pytest.param(FIRST_ADD, deleted, ODD, id="first-add-deleted"),
        pytest.param(ADD_OF_A_VM, again, ALL, id="add-again"),
        pytest.param(ADD_OF_A_VM, collected, ALL, id="add-collected"),
        pytest.param(ADD_OF_A_VM, overtaken, ALL, id="add-overtaken"),
        pytest.param(ADD_WITHOUT_GATEWAY, deleted, ALL, id="add-without-gateway-deleted"),
        pytest.param(ADD_WITHOUT_GATEWAY, overtaken, ALL, id="add-without-gateway-overtaken"),
        pytest.param(DEL_OF_A_VM, again, ALL, id="del-again"),
        pytest.param(DEL_OF_A_VM, overtaken, ALL, id="del-overtaken"),
        pytest.param(DEL_OF_A_POD, deleted, ALL, id="del-of-a-pod-deleted"),
        pytest.param(DEL_OF_A_POD, collected, ALL, id="del-of-a-pod-collected"),
        pytest.param(FOREIGN_ADD, again, EVEN, id="foreign-add-again"),
        pytest.param(FOREIGN_ADD, deleted, ODD, id="foreign-add-deleted"),
        pytest.param(FOREIGN_DEL, again, EVEN, id="foreign-del-again"),
        pytest.param(FOREIGN_DEL, deleted, ODD, id="foreign-del-deleted"),
    ],
)
def test_killed_at_any_moment_it_leaves_nothing_that_is_not_repaired(
    node: Node, case: Case, repair: Callable[[Scene], None], part: slice
) -> None:
    with serving(node, "cnv-bridge", placed(node, case.config)) as service:
        scene = Scene(service, case, node.pod(), node.pod())
        before, moments = prepared(scene)
        missed = 0
        for moment in moments[part]:
            restore_scene(scene)
            missed += run(scene, strace.killing(moment)) != -9
            with telling(f"{repair.__name__} after a kill at {moment}"):
                repair(scene)
                assert state(scene) == before
        # No two runs are quite the same: the kernel has some calls made twice when others are busy.
        assert missed < len(moments[part]) / 10


def placed(node: Node, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a folder on this node for a foreign address manager's leases."""
    if config is not FOREIGN:
        return config
    peer("host-local")
    return {**config, "ipam": {**config["ipam"], "dataDir": str(node.rundir / "foreign")}}


def prepared(scene: Scene) -> tuple[AttachmentState, list[Moment]]:
    """What is there without the attachment, and the moments of the call that is to be killed."""
    node, case = scene.service.node, scene.case
    before = state(scene)
    if not case.new:
        # A neighbour keeps the bridge, the tables and the database in use.
        scene.service.process("ADD", "neighbour", node.pod(), "IgnoreUnknown=1;VM_NAME=neighbour").ok()
        scene.service.process("ADD", "c1", scene.pod, case.who).ok()
        scene.service.process("DEL", "c1", scene.pod).ok()
        before = state(scene)
    keep(node.statedir, node.folder / "state-before")
    keep(node.rundir, node.folder / "run-before")
    restore_scene(scene)
    log = node.folder / "log"
    assert run(scene, strace.watching(log)) == 0
    scene.delete("c1", scene.pod)
    moments = strace.without_monotony(strace.moments(log, node.folder))
    assert len(moments) > 20
    return before, moments


def restore_scene(scene: Scene) -> None:
    """The node as it was before the call that is to be killed."""
    node = scene.service.node
    if scene.case.new:
        node.run("ip", "link", "delete", "br0", check=False)
        node.run("nft", "flush", "ruleset")
        shutil.rmtree(node.rundir, ignore_errors=True)
    keep(node.folder / "state-before", node.statedir)
    if scene.case.command == "DEL":
        scene.service.call("ADD", "c1", scene.pod, scene.case.who).ok()


def run(scene: Scene, within: tuple[str, ...]) -> int:
    """The call that is to be killed."""
    case = scene.case
    if case.config is FOREIGN and any(argument.startswith("--inject") for argument in within):
        # Not the address manager: each program's system calls are counted by themselves.
        within = tuple(argument for argument in within if argument != "-f")
    return scene.service.process(case.command, "c1", scene.pod, case.who, within=within).code


def state(scene: Scene) -> AttachmentState:
    """All that belongs to attachments, but for the time since when a VM is stopped."""
    found = attachment_state(scene.service.node, scene.pod, scene.other)
    return found._replace(leases=tuple(lease._replace(since=0) for lease in found.leases))


@contextmanager
def telling(what: str) -> Generator[None]:
    try:
        yield
    except AssertionError as e:
        raise AssertionError(what) from e
