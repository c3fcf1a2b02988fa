"""Being inside another namespace, by one thread and by many."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_interface

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.links import CreateBridge
from cnvnet.kernel.netlink import Socket
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import LinuxKernel, NetlinkStack
from tests.harness import namespace


@pytest.fixture
def other() -> Iterator[Netns]:
    with namespace() as path, netns.opened(path) as opened:
        yield opened


def test_a_thread_is_inside_for_the_block_only(other: Netns) -> None:
    home = netns.own_inode()
    with netns.entered(other):
        assert netns.own_inode() == other.inode
    assert netns.own_inode() == home


def test_a_thread_comes_back_when_the_block_fails(other: Netns) -> None:
    home = netns.own_inode()
    with pytest.raises(ZeroDivisionError), netns.entered(other):
        _ = 1 / 0
    assert netns.own_inode() == home


def test_a_thread_is_inside_one_namespace_at_most(other: Netns) -> None:
    with (
        netns.entered(other),
        pytest.raises(RuntimeError, match="inside another namespace already"),
        netns.entered(other),
    ):
        pass
    with netns.entered(other):
        assert netns.own_inode() == other.inode


def test_a_namespace_that_cannot_be_entered_leaves_the_thread_where_it_is() -> None:
    home = netns.own_inode()
    with (
        open(os.devnull) as file,
        pytest.raises(OSError, match="setns"),
        netns.entered(Netns("/dev/null", file.fileno(), 0)),
    ):
        pass
    assert netns.own_inode() == home


def test_a_program_that_cannot_come_back_ends(other: Netns) -> None:
    code = f"""
import ctypes, struct
from cnvnet.kernel import netns
try:
    with netns.opened({other.path!r}) as other, netns.entered(other):
        # Without capabilities the way back is barred.
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
except Exception:
    print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"LostNamespace: cannot leave {other.path}: setns: operation not permitted" in done.stderr


def test_a_socket_stays_where_it_was_opened(other: Netns) -> None:
    with netns.entered(other):
        socket = Socket()
    with socket:
        NetlinkStack(socket, other).apply(CreateBridge("br-other"))
    with netns.entered(other), Socket() as inside:
        assert NetlinkStack(inside, None).link("br-other") is not None


def test_sixteen_threads_are_never_in_a_wrong_namespace() -> None:
    kernel = LinuxKernel()
    home = netns.own_inode()
    wrong: list[str] = []
    with ExitStack() as undo:
        paths = [undo.enter_context(namespace()) for _ in range(4)]
        for number, path in enumerate(paths):
            with kernel.netns(path) as target, kernel.stack(target) as stack:
                stack.apply(
                    CreateBridge(f"mark{number}"), AddAddress(1, ip_interface(f"10.0.0.{number + 1}/32"))
                )
                stack.sysctls.set("net/ipv4/ip_forward", str(number % 2))
        gc.collect()  # whatever other tests have left open goes now or not at all
        before = len(os.listdir("/proc/self/fd"))
        start = threading.Barrier(16)

        def work(thread: int) -> None:
            start.wait()
            for call in range(150):
                number = (thread + call) % len(paths)
                with kernel.netns(paths[number]) as target, kernel.stack(target) as stack:
                    names = {link.name for link in stack.links()}
                    forwarding = stack.sysctls.get("net/ipv4/ip_forward")
                    marks = {str(address.address.ip) for address in stack.addresses(1)}
                if names != {"lo", f"mark{number}"} or forwarding != str(number % 2):
                    wrong.append(f"{number}: {names} {forwarding}")
                if f"10.0.0.{number + 1}" not in marks or netns.own_inode() != home:
                    wrong.append(f"{number}: {marks}")

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(os.listdir("/proc/self/fd")) == before
    assert netns.own_inode() == home
