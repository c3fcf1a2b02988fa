"""The clients of Debian 12, each with the configuration that its package brings, and what it makes known.

What a client does to the kernel is for the tests to look at; here is what it tells the rest of the system.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from tests.functional.agent.own_agent import eventually
from tests.functional.clients.client_machine import Machine
from tests.functional.masquerade.masquerade_pod import SIDES, V4, V6, Side
from tests.harness import peer


class Learnt(NamedTuple):
    """What programs of the machine's find out; empty where a client does not ask for it."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    hostname: str = ""
    time_servers: tuple[str, ...] = ()


class Client:
    """A client of some families. It has configured the interface when `start` returns, or is about to."""

    name: str
    needs: tuple[str, ...]
    sides: tuple[Side, ...]

    def __init__(self, machine: Machine) -> None:
        for program in self.needs:
            peer(program)
        self.machine = machine

    def start(self) -> None:
        """For the first time, or with what it remembers of the time before it was stopped."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends it as a machine that is switched off does: it informs no server, and the kernel forgets."""
        self.end()
        self.machine.run("ip", "link", "set", "eth0", "down")
        self.machine.run("ip", "addr", "flush", "dev", "eth0")

    def end(self) -> None:
        raise NotImplementedError

    def renew(self) -> None:
        """Asks for what it has once more."""
        raise NotImplementedError

    def release(self) -> None:
        """Gives back what it has."""
        raise NotImplementedError

    def learnt(self) -> Learnt:
        raise NotImplementedError

    def await_addresses(self, addresses: Mapping[Side, str]) -> None:
        """Waits until the interface has these, which can be used, no others, and a default route."""
        for side in self.sides:
            wanted = [addresses[side]]
            if not eventually(partial(self._has, side, wanted)):
                raise AssertionError(f"not {wanted}: {self.machine.report()}")

    def _has(self, side: Side, wanted: list[str]) -> bool:
        return self.machine.settled(side) == wanted and "default" in self.machine.routes(side)


class Udhcpc(Client):
    """BusyBox's, with Debian's script; what that one leaves aside is in the environment it is run with."""

    name = "udhcpc"
    needs = ("busybox", "/etc/udhcpc/default.script")
    sides = (V4,)

    _SCRIPT = '#!/bin/sh\nenv >"/run/udhcpc.$1"\nexec /etc/udhcpc/default.script "$@"\n'

    def start(self) -> None:
        self.machine.write("/run/udhcpc.script", self._SCRIPT, "755")
        files = "-s /run/udhcpc.script -p /run/udhcpc.pid"
        asked = "-O search -O staticroutes -O ntpsrv -O hostname -O mtu"
        self.machine.start(f"busybox udhcpc -i eth0 -n {files} {asked}")

    def end(self) -> None:
        self.machine.run("sh", "-c", "kill $(cat /run/udhcpc.pid) && rm -f /run/udhcpc.*")

    def renew(self) -> None:
        self.machine.run("sh", "-c", "kill -USR1 $(cat /run/udhcpc.pid)")

    def release(self) -> None:
        self.machine.run("sh", "-c", "kill -USR2 $(cat /run/udhcpc.pid)")

    def reported(self) -> dict[str, str]:
        """The environment of the script."""
        lines = self.machine.read("/run/udhcpc.bound").splitlines()
        return {key: value for key, _, value in (line.partition("=") for line in lines)}

    def learnt(self) -> Learnt:
        reported = self.reported()
        return Learnt(
            resolv_conf(self.machine).nameservers,
            tuple(reported.get("search", "").split()),
            reported.get("hostname", ""),
            tuple(reported.get("ntpsrv", "").split()),
        )


class Dhclient(Client):
    """ISC's."""

    name = "dhclient"
    needs = ("dhclient",)
    sides = (V4,)
    options = "-4 -pf /run/dhclient.pid -lf /var/lib/dhcp/dhclient.leases"

    def start(self) -> None:
        self.machine.start(f"dhclient -1 -v {self.options} eth0")

    def end(self) -> None:
        self.machine.start(f"dhclient -x {self.options} eth0")

    def renew(self) -> None:
        self.stop()
        self.start()

    def release(self) -> None:
        self.machine.start(f"dhclient -r -v {self.options} eth0")

    def learnt(self) -> Learnt:
        lease = self.machine.read("/var/lib/dhcp/dhclient.leases").rpartition("lease {")[2]
        time_servers = re.findall(r"option ntp-servers ([\d.,]+);", lease)
        hostname = self.machine.run("hostname").stdout.strip()
        return resolv_conf(self.machine)._replace(
            hostname=hostname, time_servers=tuple(",".join(time_servers).split(","))
        )


class Dhclient6(Dhclient):
    """The same for IPv6, which the kernel listens to routers for; called as Debian's ifupdown does it."""

    name = "dhclient6"
    sides = (V6,)
    options = "-6 -pf /run/dhclient6.pid -lf /var/lib/dhcp/dhclient6.leases"

    def start(self) -> None:
        self.machine.run("ip", "link", "set", "eth0", "up")
        assert eventually(self.machine.link_local)
        super().start()

    def learnt(self) -> Learnt:
        lease = self.machine.read("/var/lib/dhcp/dhclient6.leases")
        found = re.findall(r"option dhcp6.sntp-servers ([0-9a-f:,]+);", lease)
        return resolv_conf(self.machine)._replace(time_servers=tuple(",".join(found[-1:]).split(",")))


class Dhcpcd(Client):
    """Roy Marples'. It listens to routers in the kernel's place."""

    name = "dhcpcd"
    needs = ("dhcpcd",)
    sides = SIDES

    def start(self) -> None:
        # Once in the background it writes to its own log only.
        self.machine.start("dhcpcd -d -j /run/clients.dhcpcd -w --waitip=46 eth0")

    def end(self) -> None:
        self._leave("-x")

    def renew(self) -> None:
        self.machine.start("dhcpcd -N eth0")

    def release(self) -> None:
        self._leave("-k")

    def _leave(self, how: str) -> None:
        """Asks the daemon to exit: on a busy machine that takes longer than the program itself waits."""
        self.machine.start(f"dhcpcd {how} eth0 || echo 'dhcpcd {how}: not yet'")
        if not eventually(lambda: not self.machine.read("/run/dhcpcd/eth0.pid")):
            raise AssertionError(f"dhcpcd {how}: {self.machine.read('/run/clients.dhcpcd')}")

    def learnt(self) -> Learnt:
        # It puts the domain behind the name that it was given.
        hostname = self.machine.run("hostname").stdout.strip().partition(".")[0]
        return resolv_conf(self.machine)._replace(hostname=hostname)


class Networkd(Client):
    """systemd's, configured as netplan and cloud-init do it. Without D-Bus it takes no command to renew."""

    name = "systemd-networkd"
    needs = ("/lib/systemd/systemd-networkd",)
    sides = SIDES

    _NETWORK = """
[Match]
Name=eth0
[Network]
DHCP=yes
[DHCPv4]
UseMTU=yes
UseDomains=yes
[DHCPv6]
UseDomains=yes
[IPv6AcceptRA]
UseDomains=yes
"""

    def start(self) -> None:
        self.machine.write("/etc/systemd/network/10-eth0.network", self._NETWORK)
        self.machine.run("mkdir", "-p", "/run/systemd")
        environment = "SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console"
        self.machine.start(f"{environment} /lib/systemd/systemd-networkd & echo $! >/run/networkd.pid")

    def end(self) -> None:
        self.machine.run("sh", "-c", "kill -KILL $(cat /run/networkd.pid)")

    def renew(self) -> None:
        self.stop()
        self.start()

    def release(self) -> None:
        self.machine.run("sh", "-c", "kill $(cat /run/networkd.pid)")

    def learnt(self) -> Learnt:
        (link,) = self.machine.ip("link", "show", "dev", "eth0")
        state = f"/run/systemd/netif/{{}}/{link['ifindex']}"
        known = assignments(self.machine.read(state.format("links")))
        lease = assignments(self.machine.read(state.format("leases")))
        nameservers, search, time_servers = (
            tuple(dict.fromkeys(known.get(key, "").split())) for key in ("DNS", "DOMAINS", "NTP")
        )
        return Learnt(nameservers, search, lease.get("HOSTNAME", ""), time_servers)


def assignments(text: str) -> dict[str, str]:
    """KEY=VALUE lines."""
    return {key: value for key, _, value in (line.partition("=") for line in text.splitlines())}


def resolv_conf(machine: Machine) -> Learnt:
    """What the machine's resolver goes by."""
    lines = [line.split() for line in machine.read("/etc/resolv.conf").splitlines() if line]
    search = [name for line in lines if line[0] == "search" for name in line[1:]]
    return Learnt(
        tuple(line[1] for line in lines if line[0] == "nameserver"),
        tuple(name.removesuffix(".") for name in search),
    )


CLIENTS: tuple[type[Client], ...] = (Udhcpc, Dhclient, Dhclient6, Dhcpcd, Networkd)
