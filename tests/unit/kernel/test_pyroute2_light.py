"""The trick by which pyroute2's message classes are had without pyroute2; each case in its own interpreter.

These tests fail when a new pyroute2 lays its modules out in another way.
"""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ALL_CLASSES = """
import sys
from cnvnet.kernel import pyroute2_light
from ipaddress import ip_address, ip_network
from cnvnet.kernel import link_messages, links, neighbours, routes, vlans
link_messages.encode_bridge(links.CreateBridge("br0"))
neighbours.encode_add(neighbours.AddNeighbour(neighbours.Neighbour(1, ip_address("10.0.0.1"), "")))
vlans.encode(vlans.AddVlans(1, (vlans.VlanRange(1, 1),)))
pyroute2_light.encode("netlink.rtnl.rtmsg", "rtmsg", {}, [])
pyroute2_light.encode("netlink.rtnl.br_vlan", "br_vlan_msg", {}, [])
"""


def test_the_message_classes_come_without_the_rest_of_pyroute2() -> None:
    loaded = run(ALL_CLASSES + "print(*(m for m in sys.modules if m.startswith('pyroute2')))").split()
    assert "pyroute2.netlink.rtnl.ifinfmsg" in loaded
    assert "pyroute2" not in loaded
    foreign = {name.split(".")[1] for name in loaded} - {"netlink", "common", "config"}
    assert foreign == set()
    assert len(loaded) < 40


def test_a_real_import_works_afterwards() -> None:
    code = ALL_CLASSES + (
        "import pyroute2, pyroute2.netlink.rtnl\n"
        "from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg\n"
        "with pyroute2.IPRoute() as ipr: print(ipr.link_lookup(ifname='lo'), len(ipr.get_links()) > 0)\n"
        "print(ifinfmsg is pyroute2_light._classes['ifinfmsg'])\n"
    )
    assert run(code).splitlines() == ["[1] True", "True"]


def test_a_pyroute2_that_is_there_already_is_used() -> None:
    code = "import pyroute2\nfrom pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg\n" + ALL_CLASSES
    assert run(code + "print(ifinfmsg is pyroute2_light._classes['ifinfmsg'])") == "True\n"


def test_threads_that_come_at_once_get_the_same_classes() -> None:
    code = """
import threading, sys
from cnvnet.kernel import pyroute2_light
start = threading.Barrier(8)
seen = []
def work():
    start.wait()
    seen.append(pyroute2_light._message_class("netlink.rtnl.rtmsg", "rtmsg"))
    seen.append(pyroute2_light._message_class("netlink.rtnl.ndmsg", "ndmsg"))
threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(len(seen), len(set(seen)), "pyroute2" in sys.modules, "pyroute2.iproute" in sys.modules)
"""
    assert run(code) == "16 2 False False\n"


def test_what_every_call_does_needs_no_pyroute2_at_all() -> None:
    code = """
import sys
from ipaddress import ip_interface, ip_network
from cnvnet.kernel import addresses, link_messages, links, routes
from cnvnet.kernel.stack import LinuxKernel
with LinuxKernel().stack() as stack:
    assert stack.link("lo") and stack.links()
    stack.addresses()
link_messages.encode_veth(links.CreateVeth("a", links.VethPeer("b")))
link_messages.encode_change(links.ChangeLink(1, up=True))
addresses.encode_add(addresses.AddAddress(1, ip_interface("10.0.0.1/24")))
routes.encode_add(routes.AddRoute(routes.Route(ip_network("0.0.0.0/0"), 1)))
print([name for name in sys.modules if name.startswith("pyroute2")])
"""
    assert run(code) == "[]\n"
