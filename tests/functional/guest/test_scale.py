"""As many guests as a node ever has, in one loop."""

from __future__ import annotations

import select
import time

from tests.functional.guest.running_loop import Guest, Lab
from tests.unit.guest.guests import MASQUERADE
from tests.unit.guest.scapy_packets import Seen4, client4, is_dhcp4_answer

NAMESPACES = 10
TAPS = 50
GROUP = 7
RENEWAL = {"ciaddr": "10.0.2.2", "source": "10.0.2.2", "destination": "10.0.2.1"}
MEBIBYTE = 1 << 20


def test_five_hundred_guests_renew_together_and_are_lost_together(lab: Lab) -> None:
    loop = lab.loop()
    guests: list[Guest] = []
    sandboxes = [lab.sandbox() for _ in range(NAMESPACES)]
    for sandbox in sandboxes:
        guests += [lab.guest(sandbox, f"tap{n}", up=False) for n in range(TAPS)]
        batch = "".join(f"link set tap{n} addrgenmode none group {GROUP} up\n" for n in range(TAPS))
        sandbox.run("ip", "-batch", "-", input=batch)
    for n, guest in enumerate(guests):
        mac = f"52:54:00:00:{n >> 8:02x}:{n & 255:02x}"
        settings = MASQUERADE._replace(guest_mac=mac, hostname=f"vm{n}")
        assert loop.serve(f"vm{n}", guest, settings) == {"served": f"vm{n}"}
        # Each asks before the others have their answers.
        guest.send(client4("request", mac=mac, **RENEWAL))
    assert loop.totals()["guests"] == len(guests)
    waiting = {guest.fd: (f"vm{n}", guest) for n, guest in enumerate(guests)}
    deadline = time.monotonic() + 60
    while waiting:
        assert time.monotonic() < deadline, f"{len(waiting)} guests have no lease"
        for fd in select.select(list(waiting), [], [], 1)[0]:
            name, guest = waiting[fd]
            for frame in filter(is_dhcp4_answer, guest.heard()):
                seen = Seen4(frame)
                assert (seen.kind, seen.options[12]) == (5, name.encode())
                del waiting[fd]
    resident = loop.resident_bytes()
    assert resident < 60 * MEBIBYTE, f"{resident / MEBIBYTE:.1f} MiB"
    counters = loop.totals()["counters"]
    assert counters["dhcp4", "ack"] == counters["ra", "announcement"] == len(guests)
    before = loop.wakeups()
    time.sleep(2)
    assert loop.wakeups() - before <= 2, "it sleeps while no guest asks"
    for sandbox in sandboxes:
        sandbox.run("ip", "link", "delete", "group", str(GROUP))
    assert {loop.hear()["lost"] for _ in guests} == {f"vm{n}" for n in range(len(guests))}
    assert loop.totals()["guests"] == 0
