"""Many links at once: answers stay complete, nothing waits forever."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.link_messages import encode_veth
from cnvnet.kernel.links import CreateVeth, DeleteLink, VethPeer
from cnvnet.kernel.netlink import Socket
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import LinuxKernel
from tests.harness import namespace


@pytest.fixture
def crowded() -> Iterator[tuple[Netns, set[str]]]:
    """A namespace with four thousand links, and their names."""
    pairs = [(f"near{number}", f"far{number}") for number in range(2000)]
    with namespace() as path, netns.opened(path) as target:
        with netns.entered(target):
            socket = Socket()
        with socket:
            messages = [encode_veth(CreateVeth(near, VethPeer(far), up=False)) for near, far in pairs]
            for message in messages:
                socket.request(message)
        yield target, {name for pair in pairs for name in pair}


def test_a_listing_of_four_thousand_links_is_complete_while_others_come_and_go(
    crowded: tuple[Netns, set[str]],
) -> None:
    target, names = crowded
    kernel = LinuxKernel()
    over = threading.Event()

    def churn() -> None:
        with kernel.stack(target) as stack:
            # Fifty changes a second interrupt some listings; without a pause a busy machine's all.
            while not over.wait(0.02):
                [made] = stack.apply(CreateVeth("passing", VethPeer("by"), up=False))
                stack.apply(DeleteLink(made.ifindex))

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with kernel.stack(target) as stack:
            for _ in range(3):
                listed = [link.name for link in stack.links()]
                assert names <= set(listed)
                assert len(set(listed)) == len(listed)
    finally:
        over.set()
        thread.join()


def test_a_process_with_many_descriptors_waits_as_any_other() -> None:
    """select(2) knows the first 1,024; an agent has more when some hundred calls wait."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with namespace() as path, netns.opened(path) as target, ExitStack() as undo:
        undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
        while (taken := os.open("/dev/null", os.O_RDONLY)) <= 1024:
            undo.callback(os.close, taken)
        undo.callback(os.close, taken)
        with LinuxKernel().stack(target) as stack, stack.changes() as changes:
            assert not changes.wait(0)
            stack.apply(CreateVeth("near", VethPeer("far"), up=False))
            assert changes.wait(10)
            assert not changes.wait(0)
