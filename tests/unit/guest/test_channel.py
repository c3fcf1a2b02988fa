from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.guest.channel import Channel, Closed, Counters, Drop, RefusedRequest, Serve, parse

Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Channel(ours), theirs


def message(**fields: object) -> bytes:
    return json.dumps({"v": 1, **fields}).encode()


def test_each_request_becomes_a_value() -> None:
    assert parse(message(serve="vm1", settings={"mtu": 1500}), [7]) == Serve("vm1", {"mtu": 1500}, 7)
    assert parse(message(drop="vm1"), []) == Drop("vm1")
    assert parse(message(counters=True), []) == Counters()


def test_fields_that_this_version_does_not_know_are_passed_over() -> None:
    assert parse(message(drop="vm1", why="because"), []) == Drop("vm1")


@pytest.mark.parametrize(
    ("data", "descriptors", "name"),
    [
        (message(serve="vm1", settings={}), [], "vm1"),
        (message(serve="vm1", settings={}), [7, 8], "vm1"),
        (message(serve="vm1"), [7], "vm1"),
        (message(serve="vm1", settings="x"), [7], "vm1"),
        (message(serve=None, settings={}), [7], ""),
        (message(serve="", settings={}), [7], ""),
        (b'{"v": 2, "drop": "vm1"}', [], ""),
        (b'{"drop": "vm1"}', [], ""),
    ],
)
def test_what_is_refused_names_the_guest_it_was_about(
    data: bytes, descriptors: list[int], name: str
) -> None:
    with pytest.raises(RefusedRequest) as refused:
        parse(data, descriptors)
    assert refused.value.name == name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["v", "serve", "settings", "drop", "counters", "other"])


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedRequest):
        parse(data, [])


@given(
    st.dictionaries(keys, json_values | st.sampled_from([1, "vm1", True])), st.lists(st.just(7), max_size=2)
)
def test_any_object_is_a_request_or_refused(document: dict[str, object], descriptors: list[int]) -> None:
    try:
        request = parse(json.dumps(document).encode(), descriptors)
    except RefusedRequest:
        return
    assert document["v"] == 1
    assert isinstance(request, (Serve, Drop, Counters))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_descriptor_is_the_receivers_only_with_a_request_for_it(ends: Ends) -> None:
    channel, agent = ends
    with open(os.devnull) as null:
        aside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [null.fileno()]))]
        before = open_descriptors()
        for data in (message(counters=True), message(drop="vm1"), message(serve="vm1"), b"{"):
            agent.sendmsg([data], aside)
            try:
                channel.receive(ended=False)
            except RefusedRequest:
                pass
            assert open_descriptors() == before
        agent.sendmsg([message(serve="vm1", settings={})], aside)
        request = channel.receive(ended=False)
        assert isinstance(request, Serve)
        assert os.fstat(request.fd).st_rdev == os.fstat(null.fileno()).st_rdev
        assert not os.get_inheritable(request.fd)
        os.close(request.fd)


def test_an_empty_message_is_no_end_and_an_end_is(ends: Ends) -> None:
    channel, agent = ends
    with pytest.raises(BlockingIOError):
        channel.receive(ended=False)
    agent.send(b"")
    with pytest.raises(RefusedRequest):
        channel.receive(ended=False)
    agent.close()
    with pytest.raises(Closed):
        channel.receive(ended=True)
    with pytest.raises(Closed):
        channel.send({})


def test_answers_that_find_no_room_wait_in_their_order(ends: Ends) -> None:
    channel, agent = ends
    sent = 0
    while not channel.is_full():
        channel.send({"n": sent})
        sent += 1
    channel.send({"n": sent})
    for expected in range(sent + 1):
        channel.flush()
        assert json.loads(agent.recv(100)) == {"n": expected}
    channel.flush()
    assert not channel.is_full()
