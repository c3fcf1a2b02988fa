"""The transport, on the loopback's namespace of the test run: reading needs no rights."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.kernel import link_messages, netlink
from cnvnet.kernel.netlink import NetlinkError, NetlinkMessage, Socket, attribute, attributes, nested, text


@pytest.fixture
def channel() -> Iterator[Socket]:
    with Socket() as opened:
        yield opened


class Scripted(Socket):
    """A socket whose kernel says what the test wants; a datagram is bytes, or an exception to raise."""

    def __init__(self, *answers: list[bytes] | OSError) -> None:
        super().__init__()
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self._socket.close()
        self._socket = self  # type: ignore[assignment]  # the transport uses only send and recvfrom of it

    def close(self) -> None: ...

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return b"".join(one + b"\0" * (-len(one) % 4) for one in answer), (0, 0)


def answer(kind: int, sequence: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def verdict(sequence: int, number: int = 0, explanation: str = "", kind: int = 2) -> bytes:
    body = struct.pack("=i", -number)
    if kind == 2:
        body += struct.pack("=IHHII", 20, 16, 5, sequence, 0)
    flags = 0x100
    if explanation:
        flags |= 0x200
        body += attribute(1, explanation.encode() + b"\0")
    return answer(kind, sequence, body, flags)


QUERY = NetlinkMessage(link_messages.RTM_GETLINK, 0, b"")


def test_a_query_is_answered(channel: Socket) -> None:
    assert link_messages.decode(channel.get(link_messages.query("lo"))).ifindex == 1


def test_a_refusal_has_the_kernels_own_words(channel: Socket) -> None:
    with pytest.raises(NetlinkError) as caught:
        channel.get(NetlinkMessage(link_messages.RTM_GETLINK, 0, b"\0"))
    assert caught.value.errno == errno.EINVAL
    assert caught.value.text.startswith("invalid argument (")


def test_a_dump_is_complete_and_ends(channel: Socket) -> None:
    names = [link_messages.decode(raw).name for raw in channel.dump(link_messages.query_all())]
    assert "lo" in names
    assert len(names) == len(socket.if_nameindex())


def test_answers_to_requests_that_were_given_up_are_passed_over() -> None:
    scripted = Scripted([answer(16, 0, b"stale"), verdict(0)], [answer(16, 1, b"own")], [verdict(1)])
    assert scripted.request(QUERY) == [answer(16, 1, b"own")]


def test_words_of_another_process_are_passed_over() -> None:
    class Forged(Scripted):
        def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
            data, _ = super().recvfrom(size)
            return data, (4711 if b"forged" in data else 0, 0)

    forged = Forged([answer(16, 1, b"forged"), verdict(1)], [answer(16, 1, b"true")])
    assert forged.get(QUERY) == answer(16, 1, b"true")


def test_an_interrupted_dump_is_repeated() -> None:
    scripted = Scripted(
        [answer(16, 1, b"old"), answer(16, 1, b"torn", flags=netlink.DUMP_INTERRUPTED)],
        [verdict(1, kind=3)],
        [answer(16, 2, b"new")],
        [verdict(2, kind=3)],
    )
    assert scripted.dump(QUERY) == [answer(16, 2, b"new")]
    assert len(scripted.sent) == 2


def test_a_dump_whose_end_says_interrupted_is_repeated() -> None:
    end = answer(3, 1, struct.pack("=i", 0), flags=netlink.DUMP_INTERRUPTED)
    scripted = Scripted([answer(16, 1, b"old"), end], [answer(16, 2, b"new"), verdict(2, kind=3)])
    assert scripted.dump(QUERY) == [answer(16, 2, b"new")]


def test_a_dump_that_lost_messages_is_repeated() -> None:
    scripted = Scripted(
        OSError(errno.ENOBUFS, "no buffer space"), [answer(16, 2, b"all")], [verdict(2, kind=3)]
    )
    assert scripted.dump(QUERY) == [answer(16, 2, b"all")]


def test_a_dump_that_never_holds_still_is_an_error() -> None:
    class Restless(Scripted):
        def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
            return answer(3, len(self.sent), struct.pack("=i", 0), flags=netlink.DUMP_INTERRUPTED), (0, 0)

    with pytest.raises(NetlinkError) as caught:
        Restless().dump(QUERY)
    assert caught.value.errno == errno.EBUSY


def test_a_dump_can_fail_at_its_end() -> None:
    scripted = Scripted([answer(16, 1), verdict(1, errno.EMSGSIZE, kind=3)])
    with pytest.raises(NetlinkError) as caught:
        scripted.dump(QUERY)
    assert caught.value.errno == errno.EMSGSIZE


def test_what_the_kernel_explains_is_in_the_text() -> None:
    with pytest.raises(NetlinkError) as caught:
        Scripted([verdict(1, errno.EINVAL, "Cannot do that")]).request(QUERY)
    assert caught.value.text == "invalid argument (Cannot do that)"


def test_an_uncapped_refusal_is_understood() -> None:
    # Kernels that know no NETLINK_CAP_ACK copy the whole request before the explanation.
    request = struct.pack("=IHHII", 23, 16, 5, 1, 0) + b"1234567" + b"\0"
    body = struct.pack("=i", -errno.EPERM) + request + attribute(1, b"why\0")
    with pytest.raises(NetlinkError, match="why"):
        Scripted([answer(2, 1, body, flags=0x200)]).request(QUERY)


def test_an_acknowledgement_is_no_answer_to_a_query() -> None:
    with pytest.raises(NetlinkError) as caught:
        Scripted([verdict(1)]).get(QUERY)
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize("length", [0, 15, 64], ids=["nothing", "less than a header", "more than came"])
def test_a_message_of_impossible_length_is_an_error(length: int) -> None:
    broken = struct.pack("=IHHII", length, 16, 0, 1, 0)
    with pytest.raises(NetlinkError) as caught:
        Scripted([broken]).request(QUERY)
    assert caught.value.errno == errno.EPROTO


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=64)), unique_by=lambda one: one[0]))
def test_attributes_come_back_as_they_went(wanted: list[tuple[int, bytes]]) -> None:
    assert attributes(b"".join(attribute(kind, payload) for kind, payload in wanted)) == dict(wanted)


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_parser(data: bytes) -> None:
    for payload in attributes(data).values():
        attributes(payload)
        text(payload)


def test_a_nested_attribute_says_that_it_is_one() -> None:
    packed = nested(5, attribute(1, b"x"))
    assert struct.unpack_from("=HH", packed) == (12, 5 | 0x8000)
    assert attributes(attributes(packed)[5]) == {1: b"x"}
