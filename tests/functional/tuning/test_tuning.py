"""cnv-tuning beside the reference plugin: the same calls, results and interfaces, but where it errs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.functional.bridge.bridge_network import Network
from tests.harness import VERSIONS, Node, Outcome, installed

REFERENCE, OURS = "tuning", "cnv-tuning"
PROGRAMS = (pytest.param(REFERENCE, id="reference"), pytest.param(OURS, id="ours"))
MAC, NEW_MAC = "02:00:00:00:00:01", "02:00:00:00:00:99"
WITH_ADDRESSES = {"ips": [{"address": "192.0.2.5/24", "interface": 1}]}
each_program = pytest.mark.parametrize("program", PROGRAMS)


def where_reference_errs(reason: str) -> pytest.MarkDecorator:
    """Run a test against both, knowing (strictly) that the reference fails it."""
    wrong = pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True)
    return pytest.mark.parametrize(
        "program", [pytest.param(REFERENCE, id="reference", marks=wrong), pytest.param(OURS, id="ours")]
    )


class Chain:
    """A network in which the plugin stands behind one that has made eth0."""

    def __init__(self, node: Node, program: str, version: str = "1.0.0") -> None:
        self.node = node
        self.program = program
        self.version = version
        self.pod = node.pod()
        self.pod.run("ip", "link", "add", "eth0", "address", MAC, "type", "veth", "peer", "name", "far")
        self.pod.run("ip", "link", "set", "eth0", "up")
        self.pod.run("ip", "link", "set", "far", "up")

    @property
    def backups(self) -> Path:
        return self.node.folder / "backups"

    def call(self, command: str, keys: dict[str, Any], **call: Any) -> Outcome:
        result: dict[str, Any] = {
            "cniVersion": self.version,
            "interfaces": [{"name": "br0"}, {"name": "eth0", "mac": MAC, "sandbox": self.pod.netns}],
            **WITH_ADDRESSES,
        }
        if self.version in ("0.3.0", "0.3.1", "0.4.0"):
            result["ips"] = [{"version": "4", **WITH_ADDRESSES["ips"][0]}]
        elif self.version in ("0.1.0", "0.2.0"):
            result = {"cniVersion": self.version, "ip4": {"ip": "192.0.2.5/24"}}
        config = {
            "cniVersion": self.version,
            "name": "testConfig",
            "type": self.program,
            "dataDir": str(self.backups),
            "prevResult": result,
            **keys,
        }
        return self.node.cni(self.program, command, config, call.pop("pod", self.pod), **call)

    def eth0(self) -> dict[str, Any]:
        """What the plugin may change, as iproute2 shows it."""
        link = self.pod.link("eth0")
        assert link is not None
        flags = link["flags"]
        return {
            "mac": link["address"],
            "mtu": link["mtu"],
            "promisc": "PROMISC" in flags,
            "allmulti": "ALLMULTI" in flags,
            "txQLen": link.get("txqlen", 0),
            "up": "UP" in flags,
        }

    def sysctl(self, name: str) -> str:
        return self.pod.run("cat", f"/proc/sys/net/{name}").stdout.strip()

    def records(self) -> list[str]:
        folder = self.node.rundir / "attachments"
        return [path.name for path in folder.glob("cnv-tuning-*.json") if path.stat().st_size]


# Each key by itself, and what it makes of the interface.
KEYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "mac": ({"mac": NEW_MAC}, {"mac": NEW_MAC}),
    "mtu": ({"mtu": 1400}, {"mtu": 1400}),
    "promisc": ({"promisc": True}, {"promisc": True}),
    "not-promisc": ({"promisc": False}, {}),
    "allmulti": ({"allmulti": True}, {"allmulti": True}),
    "not-allmulti": ({"allmulti": False}, {"allmulti": False}),
    "queue": ({"txQLen": 77}, {"txQLen": 77}),
    "queue-of-0": ({"txQLen": 0}, {"txQLen": 0}),
    "runtime-config": ({"runtimeConfig": {"mac": NEW_MAC}, "mac": MAC}, {"mac": NEW_MAC}),
    "args": (
        {
            "args": {"cni": {"mac": NEW_MAC, "mtu": 1300, "promisc": True, "allmulti": True, "txQLen": 7}},
            "runtimeConfig": {"mac": MAC},
            "mtu": 1200,
            "allmulti": False,
            "txQLen": 9,
        },
        {"mac": NEW_MAC, "mtu": 1300, "promisc": True, "allmulti": True, "txQLen": 7},
    ),
    "all": (
        {"mac": NEW_MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 77},
        {"mac": NEW_MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 77},
    ),
}


@pytest.mark.parametrize("name", KEYS)
@each_program
def test_an_interface_is_changed_and_restored(node: Node, program: str, name: str) -> None:
    keys, changed = KEYS[name]
    chain = Chain(node, program)
    before = chain.eth0()
    result = chain.call("ADD", keys).ok()
    assert chain.eth0() == {**before, **changed}
    mac = changed.get("mac", MAC)
    assert [each.get("mac") for each in result["interfaces"]] == [None, mac]
    assert chain.call("DEL", keys).ok() is None
    assert chain.eth0() == before
    assert chain.records() == []
    assert not list(chain.backups.glob("*"))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_is_the_references_to_the_byte(node: Node, version: str) -> None:
    printed = [
        Chain(node, program, version).call("ADD", KEYS["all"][0], container_id=program).stdout
        for program in (REFERENCE, OURS)
    ]
    masked = [text.replace("/proc/", "").split('"sandbox": "')[0] for text in printed]
    assert masked[0] == masked[1]


@each_program
def test_a_mac_of_cni_args_comes_before_the_configurations(node: Node, program: str) -> None:
    chain = Chain(node, program)
    chain.call("ADD", {"mac": MAC}, args=f"IgnoreUnknown=1;K8S_POD_NAME=a;MAC={NEW_MAC}").ok()
    assert chain.eth0()["mac"] == NEW_MAC


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("net.ipv4.conf.IFNAME.arp_notify", "1"),
        ("net/ipv4/conf/IFNAME/arp_notify", "1"),
        ("net.ipv4.conf.eth0.arp_notify", "1"),
    ],
)
@each_program
def test_a_sysctl_is_set_and_checked(node: Node, program: str, key: str, value: str) -> None:
    chain = Chain(node, program)
    keys = {"sysctl": {key: value}}
    chain.call("ADD", keys).ok()
    assert chain.sysctl("ipv4/conf/eth0/arp_notify") == value
    chain.call("CHECK", keys).ok()
    chain.pod.run("sysctl", "-qw", "net.ipv4.conf.eth0.arp_notify=0")
    assert "arp_notify" in chain.call("CHECK", keys).error()["msg"]
    chain.call("DEL", keys).ok()


def test_sysctls_of_args_come_before_the_same_of_the_configuration(node: Node) -> None:
    for program in (REFERENCE, OURS):
        chain = Chain(node, program)
        of_args = {"args": {"cni": {"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}}}
        given = {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.conf.IFNAME.arp_notify": "0"}
        keys = {"sysctl": given, **of_args}
        chain.call("ADD", keys, container_id=program).ok()
        values = [chain.sysctl(f"ipv4/conf/eth0/{name}") for name in ("arp_notify", "arp_filter")]
        assert values == ["1", "1"], program


@each_program
def test_a_sysctl_of_an_interface_with_a_dot(node: Node, program: str) -> None:
    chain = Chain(node, program)
    chain.pod.run("ip", "link", "set", "eth0", "down")
    chain.pod.run("ip", "link", "set", "eth0", "name", "eth0.5")
    keys = {"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}
    chain.call("ADD", keys, ifname="eth0.5").ok()
    assert chain.sysctl("ipv4/conf/eth0.5/arp_notify") == "1"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not-net": ({"sysctl": {"kernel.hostname": "x"}}, 'invalid net sysctl key: "kernel/hostname"'),
    "climbs": ({"sysctl": {"net/../kernel/hostname": "x"}}, "invalid net sysctl key"),
    "climbs-in-dots": ({"sysctl": {"net.//.kernel.hostname": "x"}}, "invalid net sysctl key"),
    "twice": (
        {"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1", "net/ipv4/conf/IFNAME/arp_notify": "0"}},
        "duplicated sysctl keys are not allowed",
    ),
    "no-text": ({"sysctl": {"net.ipv4.ip_forward": 1}}, "sysctl.net.ipv4.ip_forward: expected a string"),
    "missing": ({"sysctl": {"net.ipv4.conf.IFNAME.nope": "1"}}, "no such file or directory"),
    "bad-mac": ({"mac": "zz"}, 'mac: "zz" is not a MAC address'),
    "multicast": ({"mac": "01:00:00:00:00:05"}, "is a multicast MAC address"),
    "large-mtu": ({"mtu": 65536}, "mtu: 65536 is not between 0 and 65535"),
    "small-mtu": ({"mtu": 60, "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}, "eth0: invalid argument"),
    "queue": ({"txQLen": -1}, "txQLen: -1"),
    "args": ({"args": {"cni": {"mtu": "x"}}}, "args.cni.mtu: expected an integer, got a string"),
    "no-result": ({"prevResult": None}, "Required prevResult missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(node: Node, name: str) -> None:
    keys, said = REFUSED[name]
    chain = Chain(node, OURS)
    before = chain.eth0()
    error = chain.call("ADD", keys).error()
    assert said in error["msg"]
    assert chain.eth0() == before
    assert chain.sysctl("ipv4/conf/eth0/arp_notify") == "0"
    assert chain.records() == []


@each_program
def test_a_sysctl_that_stands_twice_is_refused(node: Node, program: str) -> None:
    chain = Chain(node, program)
    twice = '{"net.ipv4.conf.IFNAME.arp_notify": "1", "net.ipv4.conf.IFNAME.arp_notify": "0"}'
    config = json.dumps({"cniVersion": "1.0.0", "name": "n", "type": program, "prevResult": {}})
    text = f'{config[:-1]}, "sysctl": {twice}}}'
    error = node.cni(program, "ADD", text, chain.pod).error()
    assert error["msg"] == "duplicated sysctl keys are not allowed"


@each_program
def test_an_interface_that_is_not_there(node: Node, program: str) -> None:
    chain = Chain(node, program)
    error = chain.call("ADD", {"mtu": 1300}, ifname="eth7").error()
    assert error["msg"] == 'failed to get "eth7": Link not found'
    assert chain.call("ADD", {}, ifname="eth7").ok()
    assert chain.call("DEL", {"mtu": 1300}, ifname="eth7").ok() is None


@where_reference_errs("its CHECK asks that the interface is not promiscuous where promisc is not asked for")
def test_check_compares_what_is_asked_for(node: Node, program: str) -> None:
    chain = Chain(node, program)
    keys = {"mac": NEW_MAC, "mtu": 1400, "allmulti": True, "txQLen": 77}
    chain.call("ADD", keys).ok()
    chain.pod.run("ip", "link", "set", "eth0", "promisc", "on")
    chain.call("CHECK", keys).ok()
    for damage, key, value in (
        (("mtu", "1300"), "mtu", 1400),
        (("allmulticast", "off"), "allmulti", True),
        (("txqueuelen", "5"), "txQLen", 77),
        (("address", MAC), "mac", NEW_MAC),
    ):
        chain.pod.run("ip", "link", "set", "eth0", *damage)
        error = chain.call("CHECK", {key: value}).error()
        assert key.lower() in error["msg"].lower()
        assert damage[1].replace("off", "false") in error["msg"]


@where_reference_errs("its second ADD overwrites what the first has kept")
def test_an_add_that_is_repeated_keeps_the_first_state(node: Node, program: str) -> None:
    chain = Chain(node, program)
    before = chain.eth0()
    chain.call("ADD", {"mac": NEW_MAC, "mtu": 1400}).ok()
    chain.call("ADD", {"mac": "02:00:00:00:00:98"}).ok()
    assert chain.eth0() == {**before, "mac": "02:00:00:00:00:98"}
    chain.call("DEL", {}).ok()
    assert chain.eth0() == before


def test_an_add_of_the_reference_is_deleted(node: Node) -> None:
    theirs = Chain(node, REFERENCE)
    before = theirs.eth0()
    keys = KEYS["all"][0]
    theirs.call("ADD", keys).ok()
    theirs.program = OURS
    theirs.call("CHECK", keys).ok()
    theirs.call("DEL", {**keys, "prevResult": None}).ok()
    assert theirs.eth0() == before
    assert not list(theirs.backups.glob("*"))


def test_gc_deletes_what_is_not_valid_any_more(node: Node) -> None:
    chain = Chain(node, OURS, "1.1.0")
    before = chain.eth0()
    chain.call("ADD", {"mtu": 1400}).ok()
    valid = [{"containerID": "dummy-0", "ifname": "eth0"}]
    chain.call("GC", {"cni.dev/valid-attachments": valid}, pod="").ok()
    assert chain.records() != []
    chain.call("GC", {"cni.dev/valid-attachments": []}, pod="").ok()
    assert chain.records() == []
    assert chain.eth0() == before


def test_status_and_a_namespace_that_has_gone(node: Node) -> None:
    chain = Chain(node, OURS, "1.1.0")
    chain.call("STATUS", {}, pod="").ok()
    chain.call("ADD", {"mtu": 1400}).ok()
    assert chain.call("DEL", {"mtu": 1400}, pod="/run/netns/nowhere").ok() is None
    assert chain.records() == []


def test_behind_cnv_bridge(node: Node) -> None:
    """As the networks of KubeVirt's and OpenShift's documentation have it."""
    network = Network(node, "cnv-bridge", "0.3.1", macspoofchk=False)
    pod = node.pod()
    made = network.add(pod).ok()
    config = {"cniVersion": "0.3.1", "name": "testConfig", "type": OURS, "mtu": 1400, "prevResult": made}
    result = node.cni(OURS, "ADD", config, pod).ok()
    assert result == made
    link = pod.link("eth0")
    assert link is not None
    assert link["mtu"] == 1400
    node.cni(OURS, "DEL", config, pod).ok()
    network.delete(pod, made).ok()
    assert pod.link("eth0") is None


@pytest.fixture
def allowed(node: Node) -> list[str]:
    """A command that runs an executable where /etc/cni/tuning has this allowlist."""
    folder = node.folder / "etc-tuning"
    folder.mkdir(parents=True)
    (folder / "allowlist.conf").write_text("^net\\.ipv4\\.conf\\.IFNAME\\.arp_\n\n")
    script = (
        "mkdir -p /etc/cni && mount -t tmpfs none /etc/cni && mkdir /etc/cni/tuning && "
        'mount --bind "$0" /etc/cni/tuning && exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, str(folder)]


@pytest.mark.parametrize("program", [REFERENCE, installed(OURS)], ids=["reference", "ours"])
def test_an_allowlist_names_what_may_be_set(node: Node, allowed: list[str], program: str) -> None:
    chain = Chain(node, program)
    within = {"within": allowed, "env": {"CNVNET_AGENT": "off"}}
    chain.call("ADD", {"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}, **within).ok()
    error = chain.call("ADD", {"sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}}, **within).error()
    assert error["msg"] == (
        "Sysctl net.ipv4.conf.IFNAME.log_martians is not allowed. Only the following sysctls are allowed: "
        "[^net\\.ipv4\\.conf\\.IFNAME\\.arp_]"
    )
