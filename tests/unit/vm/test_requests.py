"""What annotations ask for: which interface they are for, and which of two sources counts."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.vm import names, requests
from cnvnet.vm.launcher import Subject, subject
from cnvnet.vm.requests import MacRequest
from tests.kubevirt import captured, migration, started

LAN = "pod094a367b026"
ALONE: frozenset[str] = frozenset()


def of(machine: str, ifname: str, annotations: dict[str, str], **edits: Any) -> Subject:
    pod, vmi = started(machine)
    pod["metadata"]["annotations"] |= annotations
    for each in vmi["spec"]["domain"]["devices"]["interfaces"]:
        if each["name"] in edits:
            each["macAddress"] = edits[each["name"]]
    found = subject(pod, vmi, ifname)
    assert found is not None
    return found


def target_of(ifname: str, annotations: dict[str, str]) -> Subject:
    pod = captured("pod-migration-target-vm-a")
    pod["metadata"]["annotations"] |= annotations
    found = subject(pod, migration("vm-a", "1-scheduling"), ifname)
    assert found is not None
    return found


def ips(about: Subject, *attached: str) -> list[str]:
    asked = requests.addresses(about, lambda: frozenset(attached))
    assert asked.remarks == ()
    return [str(each.ip) for each in asked.addresses]


def refused(about: Subject, *attached: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        requests.addresses(about, lambda: frozenset(attached))
    assert caught.value.code == 7
    return caught.value.msg


def unasked() -> frozenset[str]:
    raise AssertionError("files are read without need")


@pytest.mark.parametrize(
    ("machine", "ifname", "suffix", "expected"),
    [
        ("vm-a", LAN, ".lan", True),
        ("vm-a", LAN, f".{LAN}", True),
        ("vm-a", LAN, ".net1", True),
        ("vm-a", "net1", ".lan", True),
        ("vm-a", LAN, ".default", False),
        ("vm-a", LAN, ".eth0", False),
        ("vm-a", "eth0", ".eth0", True),
        ("vm-a", "eth0", ".default", True),
        ("vm-a", "eth0", "", True),
        ("vm-primary", "eth0", "", True),
        ("vm-twice", "pod2d711642b72", ".x", True),
        ("vm-twice", "poda1fce436385", ".x", False),
        # An interface that none of the VM's networks explains: a webhook has added it to the pod.
        ("vm-a", "extra0", ".extra0", True),
    ],
)
def test_a_suffix_is_a_network_or_an_interface_of_the_vm(
    machine: str, ifname: str, suffix: str, expected: bool
) -> None:
    about = of(machine, ifname, {f"cnvnet.io/ip_address{suffix}": "10.1.0.5"})
    asked = requests.addresses(about, unasked)
    assert [str(each.ip) for each in asked.addresses] == (["10.1.0.5"] if expected else [])
    assert [each.where for each in asked.addresses] == [
        f"annotation cnvnet.io/ip_address{suffix}"
    ] * expected


def test_a_suffix_of_no_network_is_refused() -> None:
    about = of("vm-a", LAN, {"cnvnet.io/ip_address.lna": "10.1.0.5"})
    assert refused(about) == (
        "annotation cnvnet.io/ip_address.lna: VM default/vm-a has no network and no interface of this name, "
        "only default (eth0), lan (pod094a367b026)"
    )


@pytest.mark.parametrize(
    ("machine", "ifname", "attached", "expected"),
    [
        pytest.param("vm-a", "eth0", (), True, id="eth0"),
        pytest.param("vm-a", LAN, ("eth0",), False, id="eth0 has it"),
        pytest.param("vm-a", LAN, (), True, id="the only one: eth0 is another program's"),
        pytest.param("vm-twice", "pod2d711642b72", (), True, id="the first of two, the only one so far"),
        pytest.param("vm-twice", "poda1fce436385", ("eth0", "pod2d711642b72"), False, id="eth0 has it"),
        pytest.param("vm-a", "extra0", (), False, id="no network of the VM"),
    ],
)
def test_without_a_suffix_it_is_eth0s_or_the_only_ones(
    machine: str, ifname: str, attached: tuple[str, ...], expected: bool
) -> None:
    about = of(machine, ifname, {"cnvnet.io/ip_address": "10.1.0.5"})
    assert ips(about, *attached) == (["10.1.0.5"] if expected else [])


def test_without_a_suffix_a_second_network_is_refused() -> None:
    about = of("vm-twice", "poda1fce436385", {"cnvnet.io/ip_address": "10.1.0.5"})
    assert refused(about, "pod2d711642b72") == (
        "annotation cnvnet.io/ip_address: pod2d711642b72 and poda1fce436385 both get addresses of this "
        "node's plugins: write cnvnet.io/ip_address.NETWORK (default (eth0), x (pod2d711642b72), "
        "y (poda1fce436385))"
    )


def test_a_vm_without_a_network_on_eth0_means_its_other_one() -> None:
    pod, vmi = started("vm-a")
    del vmi["spec"]["networks"][0]
    pod["metadata"]["annotations"]["cnvnet.io/ip_address"] = "10.1.0.5"
    expected = {"eth0": [], LAN: ["10.1.0.5"]}
    for ifname, addresses in expected.items():
        about = subject(pod, vmi, ifname)
        assert about is not None
        assert ips(about, *({"eth0"} - {ifname})) == addresses


def test_an_address_of_each_family_may_be_asked_for_with_or_without_length() -> None:
    about = of("vm-a", LAN, {"cnvnet.io/ip_address.lan": "10.1.0.5/24, fd00::5"})
    assert ips(about) == ["10.1.0.5", "fd00::5"]
    both = {"cnvnet.io/ip_address.lan": "10.1.0.5", f"cnvnet.io/ip_address.{LAN}": "fd00::5,10.1.0.5"}
    assert ips(of("vm-a", LAN, both)) == ["10.1.0.5", "fd00::5"]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (
            {"cnvnet.io/ip_address.lan": "10.1.0.5,10.1.0.6"},
            "annotation cnvnet.io/ip_address.lan: 10.1.0.5 and 10.1.0.6 are both IPv4, and an interface has "
            "one of each",
        ),
        (
            {"cnvnet.io/ip_address.lan": "10.1.0.5,10.1.0.5"},
            "annotation cnvnet.io/ip_address.lan: 10.1.0.5 and 10.1.0.5 are both IPv4, and an interface has "
            "one of each",
        ),
        (
            {"cnvnet.io/ip_address": "10.1.0.5", "cnvnet.io/ip_address.lan": "10.1.0.6"},
            "annotation cnvnet.io/ip_address.lan: 10.1.0.5 and 10.1.0.6 are both IPv4, and an interface has "
            "one of each",
        ),
        (
            {"cnvnet.io/ip_address.lan": "10.1.0.500"},
            'annotation cnvnet.io/ip_address.lan: "10.1.0.500" is not an IP address',
        ),
        ({"cnvnet.io/ip_address.lan": ""}, 'annotation cnvnet.io/ip_address.lan: "" is not an IP address'),
        (
            {f"cnvnet.io/ip_address.{'n' * 60}": "10.1.0.5"},
            f"annotation cnvnet.io/ip_address.{'n' * 60}: longer than 63 characters after the slash: name "
            "the pod's interface instead of the network",
        ),
    ],
)
def test_an_annotation_that_cannot_be_met_is_refused_by_its_name(
    annotations: dict[str, str], message: str
) -> None:
    assert refused(of("vm-a", LAN, annotations)) == message


def test_kube_ovns_annotation_is_for_the_first_network() -> None:
    about = of(
        "vm-a", LAN, {"ovn.kubernetes.io/ip_address": "10.1.0.5,fd00::5", "cnvnet.io/ip_address": "10.1.0.6"}
    )
    asked = requests.addresses(about, lambda: ALONE)
    assert [(str(each.ip), each.is_foreign) for each in asked.addresses] == [
        ("10.1.0.6", False),
        ("10.1.0.5", True),
        ("fd00::5", True),
    ]
    assert ips(of("vm-a", LAN, {"ovn.kubernetes.io/ip_address": "10.1.0.5"}), "eth0") == []
    assert ips(of("vm-a", LAN, {"ovn.kubernetes.io/ip_address": "static"})) == []


def test_a_migrations_target_ignores_what_it_cannot_have() -> None:
    about = target_of(LAN, {"cnvnet.io/ip_address.lna": "10.1.0.5"})
    asked = requests.addresses(about, lambda: ALONE)
    assert asked.addresses == ()
    (remark,) = asked.remarks
    assert remark.endswith(": ignored: VM default/vm-a is migrating and keeps what it has")
    # What could be had is compared with the lease, by the allocator.
    assert ips(target_of(LAN, {"cnvnet.io/ip_address.lan": "10.1.0.5"})) == ["10.1.0.5"]


# -- the MAC

SPEC = "02:00:00:00:00:0a"
OTHER = "02:00:00:00:00:99"
OF_SPEC = "VirtualMachineInstance default/vm-a: macAddress of interface lan"


def mac(about: Subject, asked: str = "", where: str = "") -> MacRequest:
    return requests.mac(about, asked, where, lambda: ALONE)


def test_the_calls_mac_beats_the_specs_which_beats_an_annotation() -> None:
    plain = of("vm-a", LAN, {})
    assert mac(plain, SPEC, "runtimeConfig.mac") == MacRequest(SPEC, "runtimeConfig.mac")
    assert mac(plain) == MacRequest(SPEC, OF_SPEC)
    annotated = {"cnvnet.io/mac_address.lan": SPEC.upper()}
    assert mac(of("vm-a", LAN, annotated)) == MacRequest(SPEC, OF_SPEC)
    twice = of("vm-twice", "pod2d711642b72", {"cnvnet.io/mac_address.x": OTHER})
    assert mac(twice) == MacRequest(OTHER, "annotation cnvnet.io/mac_address.x")
    assert mac(of("vm-twice", "poda1fce436385", {"cnvnet.io/mac_address.x": OTHER})) == MacRequest()
    # Masquerade hides the guest's MAC, so the pod may have any.
    assert mac(of("vm-a", "eth0", {"cnvnet.io/mac_address": OTHER}, default=SPEC)).mac == OTHER


def test_the_status_counts_where_nothing_else_says_a_mac() -> None:
    pod, vmi = started("vm-twice")
    vmi["status"]["interfaces"] = [{"name": "x", "mac": OTHER, "infoSource": "domain"}]
    about = subject(pod, vmi, "pod2d711642b72")
    assert about is not None
    assert mac(about) == MacRequest(OTHER, "VirtualMachineInstance default/vm-twice: status of interface x")
    vmi["spec"]["domain"]["devices"]["interfaces"][1]["macAddress"] = SPEC
    about = subject(pod, vmi, "pod2d711642b72")
    assert about is not None
    assert mac(about).mac == SPEC


@pytest.mark.parametrize(
    ("asked", "annotations", "message"),
    [
        (OTHER, {}, f"{OF_SPEC}: {SPEC} contradicts {OTHER} (runtimeConfig.mac)"),
        (
            "",
            {"cnvnet.io/mac_address.lan": OTHER},
            f"annotation cnvnet.io/mac_address.lan: {OTHER} contradicts {SPEC} ({OF_SPEC})",
        ),
        (
            SPEC,
            {"cnvnet.io/mac_address": OTHER},
            f"annotation cnvnet.io/mac_address: {OTHER} contradicts {SPEC} (runtimeConfig.mac)",
        ),
        (
            "",
            {"cnvnet.io/mac_address.lan": "01:00:5e:00:00:01"},
            'annotation cnvnet.io/mac_address.lan: "01:00:5e:00:00:01" is a multicast MAC address',
        ),
    ],
)
def test_a_weaker_mac_that_contradicts_is_refused_and_both_are_named(
    asked: str, annotations: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        mac(of("vm-a", LAN, annotations), asked, "runtimeConfig.mac" if asked else "")
    assert caught.value.msg == message


def test_a_multicast_mac_in_the_spec_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"macAddress of interface lan: .* is a multicast MAC address"):
        mac(of("vm-a", LAN, {}, lan="01:00:5e:00:00:01"))


def test_a_migrations_target_keeps_the_mac_and_says_so() -> None:
    wanted = mac(target_of(LAN, {"cnvnet.io/mac_address.lan": OTHER}))
    assert (wanted.mac, wanted.where) == (SPEC, OF_SPEC)
    assert wanted.remarks == (
        f"annotation cnvnet.io/mac_address.lan: {OTHER} contradicts {SPEC} ({OF_SPEC}): ignored: VM "
        "default/vm-a is migrating and keeps what it has",
    )


def test_a_binding_plugins_mac_yields_unless_the_call_asks_for_it() -> None:
    about = of("vm-plugin", "eth0", {})
    assert mac(about).yields
    assert not mac(about, mac(about).mac, "runtimeConfig.mac").yields


# -- what has no effect


@pytest.mark.parametrize(
    ("annotation", "is_vm", "expected"),
    [
        ("cnvnet.io/ip_address.lan", True, []),
        ("cnvnet.io/mac_address", True, []),
        ("example.org/ip_address", False, []),
        (
            "cnvnet.io/ip-address.lan",
            True,
            [
                "annotation cnvnet.io/ip-address.lan: no such annotation, only cnvnet.io/ip_address and "
                "cnvnet.io/mac_address"
            ],
        ),
        (
            "cnvnet.io/ip_address",
            False,
            ["annotation cnvnet.io/ip_address: ignored: the pod belongs to no VirtualMachineInstance"],
        ),
    ],
)
def test_an_annotation_without_effect_is_remarked(annotation: str, is_vm: bool, expected: list[str]) -> None:
    pod = {"metadata": {"annotations": {annotation: "10.1.0.5"}}}
    assert requests.remarks(pod, is_vm=is_vm) == expected


def test_a_pod_with_many_annotations_fills_no_log() -> None:
    pod = {"metadata": {"annotations": {f"cnvnet.io/x{number:05}": "" for number in range(10_000)}}}
    lines = requests.remarks(pod, is_vm=True)
    assert len(lines) == 6
    assert lines[-1] == "9995 more annotations have no effect"


def test_a_vm_with_many_networks_makes_no_long_message() -> None:
    pod, vmi = started("vm-a")
    vmi["spec"]["networks"] += [{"name": f"n{number}", "multus": {}} for number in range(1000)]
    pod["metadata"]["annotations"]["cnvnet.io/ip_address.lna"] = "10.1.0.5"
    about = subject(pod, vmi, LAN)
    assert about is not None
    assert refused(about).endswith("n2 (pod" + names.hashed("n2")[3:] + "), …")
