"""Changes of our tables are heard, and nothing else is."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.deferred.resident import ResidentKernel
from cnvnet.kernel.nft.events import NftChanges
from cnvnet.kernel.nft.tables import Element, Nft, open_nft
from tests.functional.kernel.test_nft import TEXT, mac, port
from tests.harness import Sandbox, namespace

# include/linux/proc_ns.h: of the first PID namespace, whose numbers of threads the kernel reports.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


class Ours:
    """A namespace with the table, its changes, and other programs that change something there."""

    def __init__(self, host: Sandbox, nft: Nft, changes: NftChanges) -> None:
        self.host = host
        self.nft = nft
        self.changes = changes

    def is_heard(self, script: str, *within: str) -> bool:
        """Whether what nft does there is a change of ours."""
        self.host.run(*within, "nft", "-f", "-", input=script)
        return self.changes.take()


@pytest.fixture
def ours() -> Iterator[Ours]:
    with namespace() as path, netns.opened(path) as inside, open_nft(inside) as nft:
        with netns.entered(inside):
            changes = NftChanges(["t"], ["trusted"])
        nft.ensure("bridge", "t", "guard_v1", TEXT)
        nft.change(add=[mac("veth1"), port("veth1")])
        # In a container these are a stranger's changes.
        changes.take()
        yield Ours(Sandbox(path), nft, changes)
        changes.close()


CHANGES = [
    "flush ruleset",
    "delete table bridge t",
    "flush table bridge t",
    "flush chain bridge t more",
    "flush set bridge t macs",
    'delete element bridge t ports { "veth1" }',
    "add table ip other\ndelete table bridge t\nadd chain ip other more",
    "add table bridge t { flags dormant; }",
    "insert rule bridge t more accept",
    "add chain bridge t foreign",
    "add chain bridge t guard_v1 { policy drop; }",
    'add element bridge t ports { "veth2" }',
]


@pytest.mark.parametrize("script", CHANGES)
def test_a_change_is_heard_once(ours: Ours, script: str) -> None:
    assert ours.is_heard(script)
    assert not ours.changes.take()


FOREIGN = [
    "add table ip other",
    "add table ip t2\nadd chain ip t2 t\ndelete chain ip t2 t\ndelete table ip t2",
    'add element bridge t ports { "veth1" }',  # it is there
    "",
]


@pytest.mark.parametrize("script", FOREIGN)
def test_what_changes_nothing_of_ours_is_not(ours: Ours, script: str) -> None:
    assert not ours.is_heard(script)


@pytest.mark.skipif(
    os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE,
    reason="threads have other numbers here than the kernel reports: run it outside of a container",
)
def test_what_this_process_changes_is_its_own(ours: Ours) -> None:
    ours.nft.change(delete=[mac("veth1")])
    ours.nft.run("flush ruleset")
    assert not ours.changes.take()


def test_what_a_trusted_program_changes_is_its_own(ours: Ours) -> None:
    script = "import sys; open('/proc/self/comm', 'w').write(sys.argv[1]); "
    script += "from cnvnet.kernel.nft import script; script.run('flush chain bridge t ' + sys.argv[2])"
    for name, chain, noticed in (("trusted", "more", False), ("stranger", "guard_v1", True)):
        ours.host.run(sys.executable, "-c", script, name, chain)
        assert ours.changes.take() == noticed


@contextmanager
def another_thread() -> Generator[None]:
    """Gives another thread's number for ours.

    In a container threads have other numbers than those the kernel tells: what it tells is no thread of
    ours, or one with another name.
    """
    name = Path("/proc/thread-self/comm")
    own = name.read_text()
    name.write_text("stranger")
    try:
        yield
    finally:
        name.write_text(own)


def test_a_strangers_number_may_be_that_of_a_thread_of_ours(ours: Ours) -> None:
    with another_thread():
        ours.nft.change(delete=[mac("veth1")])
    assert ours.changes.take()


def test_what_a_connection_of_ours_changes_is_our_own_in_a_container_too(ours: Ours) -> None:
    with netns.opened(ours.host.netns) as inside, netns.entered(inside):
        kernel = ResidentKernel()
        changes = NftChanges(["t"], [], kernel.ports)
        try:
            with another_thread(), kernel.nft() as nft:
                nft.change(add=[port("veth2")])
            assert kernel.ports
            assert not changes.take()
            with another_thread():
                ours.nft.change(add=[port("veth3")])
            assert changes.take()
        finally:
            changes.close()
            kernel.close()
    assert not kernel.ports


def test_an_end_of_ones_own_does_not_hide_a_strangers(ours: Ours) -> None:
    ours.host.run("nft", "flush chain bridge t more")
    ours.nft.change(delete=[mac("veth1")])
    assert ours.changes.take()


def test_thousands_of_foreign_objects_are_nothing_to_us(ours: Ours) -> None:
    lines = ["add table ip kube"]
    for number in range(20_000):
        lines += [f"add chain ip kube svc-{number}", f"add rule ip kube svc-{number} counter accept"]
    assert not ours.is_heard("\n".join(lines))
    assert not ours.is_heard("delete table ip kube")
    assert ours.is_heard("delete table bridge t")


def test_where_something_was_lost_it_may_have_been_ours(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnvnet.kernel.nft.events._ROOM", 2048)
    with netns.opened(ours.host.netns) as inside, netns.entered(inside):
        deaf = NftChanges(["t"], [])
    try:
        ours.host.run("nft", "-f", "-", input="\n".join(f"add table ip kube-{n}" for n in range(500)))
        assert deaf.take()
        assert not deaf.take()
    finally:
        deaf.close()


def test_many_elements_are_compared_as_few_are(ours: Ours) -> None:
    """A set is listed when many of its elements are asked for."""
    chain, other = "goto more", "goto beyond"
    ours.nft.run("add chain bridge t beyond")

    def to(number: int, where: str) -> Element:
        return Element("bridge", "t", "to", ("ipv4_addr",), (f"10.0.{number >> 8}.{number & 255}",), where)

    present = [to(n, chain) for n in range(300)] + [mac("veth7", n) for n in range(300)]
    absent = [mac("veth8", n) for n in range(100)] + [to(n, chain) for n in range(300, 400)]
    elsewhere = [to(n, other) for n in range(100)]
    ours.nft.change(add=present)
    assert ours.nft.missing([*present, *absent]) == absent
    assert ours.nft.missing(elsewhere) == elsewhere
    assert ours.nft.missing([element._replace(data="") for element in elsewhere]) == []
    ours.nft.run("delete table bridge t")
    assert ours.nft.missing(present) == present
