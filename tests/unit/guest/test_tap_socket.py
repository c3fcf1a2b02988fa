"""What needs no tap; the rest is in tests/functional/guest/test_taps.py."""

from __future__ import annotations

import os
import socket

import pytest

from cnvnet.guest import tap_socket


def test_only_a_packet_socket_is_adopted_and_nothing_else_stays_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for fd in (os.open(os.devnull, os.O_RDONLY), socket.socket().detach(), os.eventfd(0)):
        with pytest.raises(OSError, match="socket"):
            tap_socket.adopt(fd)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    assert sorted(os.listdir("/proc/self/fd")) == before
