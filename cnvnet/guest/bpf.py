"""The classic BPF program of one guest: the kernel drops what its services would not answer.

It is no security check: the codecs check a frame that passes like any other. It must pass every frame that
`services.answer` would answer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from cnvnet.guest import arp, dhcp4_message, dhcp6, frames, ra
from cnvnet.guest.services import Services

# Bytes: a longer frame arrives cut, and the codecs count it as malformed. No client sends as much, and dhcp4
# and dhcp6 take no message of more than 4,096 bytes anyway.
LONGEST_FRAME: Final = 4352

# include/uapi/linux/bpf_common.h and filter.h
_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_LOAD_HALF_BEHIND_X: Final = 0x48
_LOAD_HEADER_LENGTH: Final = 0xB1  # X = 4 * (byte & 15)
_JUMP: Final = 0x05
_JUMP_IF_EQUAL: Final = 0x15
_JUMP_IF_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_VLAN_TAG_PRESENT: Final = 0xFFFFF000 + 48  # SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT

_INSTRUCTION: Final = struct.Struct("=HBBI")
# From more next hops on (a pod has two or three) all questions pass: the kernel limits a program to 4,096
# steps.
_MANY: Final = 32


class Instruction(NamedTuple):
    """One step: an operation on the accumulator, and how many steps to skip if it is true, or false."""

    code: int
    k: int
    true: int = 0
    false: int = 0


Block = list[Instruction]
ACCEPT: Final = Instruction(_RETURN, LONGEST_FRAME)
# What a filter returns is how many bytes of the frame the socket gets: 0 is none of it.
DROP: Final = Instruction(_RETURN, 0)


def encode(program: Iterable[Instruction]) -> bytes:
    """The program as SO_ATTACH_FILTER takes it: an array of struct sock_filter."""
    return b"".join(_INSTRUCTION.pack(step.code, step.true, step.false, step.k) for step in program)


def program(services: Services) -> Block:
    """What passes: untagged ARP and ND questions about known neighbours, DHCP, DHCPv6, router solicitations.

    A frame that ends before what is looked at is dropped by the kernel. A VLAN tag is beside the frame by
    the time we see it: what is tagged concerns the guest's own LAN.
    """
    known = services.neighbours.known
    kinds: Block = []
    if any(len(address) == 4 for address in known):
        kinds += _when(_number(frames.ETHERTYPE_ARP), [*_arp(known), DROP])
    if services.dhcp4 is not None:
        kinds += _when(_number(frames.ETHERTYPE_IPV4), [*_dhcp4(), DROP])
    six = _ipv6(services)
    if six:
        kinds += _when(_number(frames.ETHERTYPE_IPV6), [Instruction(_LOAD_BYTE, 20), *six, DROP])
    untagged = _when(0, [Instruction(_LOAD_HALF, 12), *kinds, DROP])
    return [Instruction(_LOAD_WORD, _VLAN_TAG_PRESENT), *untagged, DROP]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _when(value: int, then: Block) -> Block:
    """`then`, which ends with a return, if the accumulator is `value`; else what follows."""
    if len(then) < 256:
        return [Instruction(_JUMP_IF_EQUAL, value, 0, len(then)), *then]
    return [Instruction(_JUMP_IF_EQUAL, value, 1, 0), Instruction(_JUMP, len(then)), *then]


def _arp(known: Iterable[bytes]) -> Block:
    asked = [[address] for address in known if len(address) == 4]
    return [Instruction(_LOAD_HALF, 20), *_when(1, [*_about(asked, 38), DROP])]


def _about(asked: list[list[bytes]], offset: int) -> Block:
    """Accepts a frame that has one of the addresses, each given as its words, at `offset`."""
    if len(asked) > _MANY:
        return [ACCEPT]
    return [step for words in asked for step in _is(words, offset)]


def _is(words: list[bytes], offset: int) -> Block:
    rest = _is(words[1:], offset + 4) if len(words) > 1 else [ACCEPT]
    return [
        Instruction(_LOAD_WORD, offset),
        Instruction(_JUMP_IF_EQUAL, _number(words[0]), 0, len(rest)),
        *rest,
    ]


def _dhcp4() -> Block:
    """The first fragment has the ports; behind the IP header, which options make longer."""
    port = [Instruction(_LOAD_HEADER_LENGTH, 14), Instruction(_LOAD_HALF_BEHIND_X, 16)]
    port += _when(dhcp4_message.PORT, [ACCEPT])
    port.append(DROP)
    first = [Instruction(_LOAD_HALF, 20), Instruction(_JUMP_IF_ANY_BIT, 0x1FFF, len(port), 0), *port]
    return [Instruction(_LOAD_BYTE, 23), *_when(frames.PROTOCOL_UDP, [*first, DROP])]


def _ipv6(services: Services) -> Block:
    """By the next header, which has to be the last: the codecs answer nothing behind extension headers."""
    steps: Block = []
    if services.dhcp6 is not None:
        port = [Instruction(_LOAD_HALF, 56), *_when(dhcp6.PORT, [ACCEPT]), DROP]
        steps += _when(frames.PROTOCOL_UDP, port)
    messages: Block = []
    if services.ra is not None:
        messages += _when(ra.SOLICITATION, [ACCEPT])
    asked = [address for address in services.neighbours.known if len(address) == 16]
    if asked:
        words = [[address[at : at + 4] for at in range(0, 16, 4)] for address in asked]
        messages += _when(arp.SOLICITATION, [*_about(words, 62), DROP])
    if messages:
        steps += _when(frames.PROTOCOL_ICMP6, [Instruction(_LOAD_BYTE, 54), *messages, DROP])
    return steps
