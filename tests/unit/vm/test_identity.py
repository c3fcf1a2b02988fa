"""The VM that a request is for: args.cni.vm or CNI_ARGS, and neither inside Kubernetes."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.attachment.record import RecordedVM
from cnvnet.cni.conventions import PodRef
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.guest import domains
from cnvnet.vm.identity import VM, Named, claim, in_kubernetes, named


def claimed(vm: Any = None, **args: str) -> VM | PodRef | None:
    config = {} if vm is None else {"args": {"cni": {"vm": vm}}}
    return claim(Fields(config), args, "eth0")


def of(vm: Any = None, **args: str) -> VM | None:
    """The VM that a call outside Kubernetes is for."""
    found = claimed(vm, **args)
    assert not isinstance(found, PodRef)
    return found


def test_a_container_that_says_nothing_is_no_vm() -> None:
    assert of() is None
    assert of(IP="10.0.0.1", MAC="0a:63:00:00:00:01") is None


def test_a_name_is_enough() -> None:
    expected = VM(namespace="default", name="vm1", uid="", interface="eth0", role="active")
    assert of(VM_NAME="vm1") == expected
    assert of({"name": "vm1"}) == expected


def test_all_of_it_can_be_said_in_both_places() -> None:
    expected = VM("tenant-a", "vm1.example", "0b8a-UID", "blue_2", "target")
    values = dict(zip(("namespace", "name", "uid", "interface", "role"), expected, strict=True))
    assert of(values) == expected
    assert of(**{f"VM_{key.upper()}": value for key, value in values.items()}) == expected


def test_args_beat_cni_args_as_a_whole() -> None:
    assert of({"name": "vm1"}, VM_NAME="vm2", VM_UID="uid2") == VM("default", "vm1", "", "eth0", "active")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"VM_UID": "x"}, "CNI_ARGS VM_NAME: required with CNI_ARGS VM_UID"),
        ({"VM_ROLE": "target"}, "CNI_ARGS VM_NAME: required with CNI_ARGS VM_ROLE"),
        (
            {"VM_NAME": "VM1"},
            'CNI_ARGS VM_NAME: "VM1" is not a name of a VM (a-z, 0-9, - and ., 253 characters at most)',
        ),
        (
            {"VM_NAME": "-vm"},
            'CNI_ARGS VM_NAME: "-vm" is not a name of a VM (a-z, 0-9, - and ., 253 characters at most)',
        ),
        (
            {"VM_NAME": "a" * 254},
            f'CNI_ARGS VM_NAME: "{"a" * 61}..." is not a name of a VM '
            "(a-z, 0-9, - and ., 253 characters at most)",
        ),
        (
            {"VM_NAME": "vm1", "VM_NAMESPACE": "a.b"},
            'CNI_ARGS VM_NAMESPACE: "a.b" is not a name of a namespace '
            "(a-z, 0-9 and -, 63 characters at most)",
        ),
        (
            {"VM_NAME": "vm1", "VM_UID": "a b"},
            'CNI_ARGS VM_UID: "a b" is not a UID (letters, digits, -, _ and ., 128 characters at most)',
        ),
        (
            {"VM_NAME": "vm1", "VM_INTERFACE": "../x"},
            'CNI_ARGS VM_INTERFACE: "../x" is not a name of an interface '
            "(letters, digits, -, _ and ., 63 characters at most)",
        ),
        (
            {"VM_NAME": "vm1", "VM_ROLE": "leaving"},
            'CNI_ARGS VM_ROLE: "leaving" is not a role (active, target, temp)',
        ),
    ],
)
def test_a_wrong_argument_is_named(args: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        of(**args)
    assert caught.value.msg == message


@pytest.mark.parametrize(
    ("vm", "message"),
    [
        ("vm1", "args.cni.vm: expected an object, got a string"),
        ({}, "args.cni.vm.name: required"),
        ({"uid": "x"}, "args.cni.vm.name: required with args.cni.vm.uid"),
        ({"name": 7}, "args.cni.vm.name: expected a string, got an integer"),
        ({"name": "vm1", "namespace": ["a"]}, "args.cni.vm.namespace: expected a string, got a list"),
        ({"name": "vm1", "role": "boss"}, 'args.cni.vm.role: "boss" is not a role (active, target, temp)'),
    ],
)
def test_a_wrong_key_is_named(vm: Any, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        of(vm)
    assert caught.value.msg == message


@pytest.mark.parametrize("name", ["a" * 253, "a." * 126 + "b", "vm" + "-" * 100 + "x", "0"])
def test_a_name_may_be_as_long_in_one_label_as_kubernetes_lets_it(name: str) -> None:
    for vm in (of(VM_NAME=name), of({"name": name})):
        assert vm is not None
        assert vm.name == name


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("vm-a", "vm-a"),
        ("web.example.org", "web"),
        ("a" * 253, "a" * 63),
        ("a" * 62 + "--b", "a" * 62),
        ("x" + "-" * 100 + "y.z", "x"),
    ],
)
def test_the_guest_is_called_by_the_first_label(name: str, hostname: str) -> None:
    vm = of(VM_NAME=name)
    assert vm is not None
    assert vm.hostname == hostname
    assert domains.cleaned(vm.hostname) == hostname


@pytest.mark.parametrize("argument", ["K8S_POD_UID", "K8S_POD_NAME", "K8S_POD_NAMESPACE"])
def test_inside_kubernetes_a_pod_cannot_say_which_vm_it_is(argument: str) -> None:
    assert in_kubernetes({argument: "x"})
    keys = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID")
    assert claimed(**{argument: "x"}) == PodRef(*("x" if key == argument else "" for key in keys))
    reason = "a Kubernetes pod cannot say which VM it is; its owner in the Kubernetes API does"
    with pytest.raises(InvalidConfig) as caught:
        of(**{argument: "x", "VM_NAME": "vm1"})
    assert caught.value.msg == f"CNI_ARGS VM_NAME: {reason}"
    with pytest.raises(InvalidConfig) as caught:
        of({"name": "vm1"}, **{argument: "x"})
    assert caught.value.msg == f"args.cni.vm.name: {reason}"


@pytest.mark.parametrize(
    ("config", "args", "expected"),
    [
        ({}, "", Named(None, None)),
        ({}, "VM_NAME=a", Named(None, RecordedVM("default", "a"))),
        ({}, "VM_NAMESPACE=n;VM_NAME=a;broken;MAC=1=2", Named(None, RecordedVM("n", "a"))),
        (
            {"args": {"cni": {"vm": {"name": "b", "namespace": "m"}}}},
            "VM_NAME=a",
            Named(None, RecordedVM("m", "b")),
        ),
        ({"args": {"cni": {"vm": ["b"]}}}, "VM_NAME=a", Named(None, None)),
        (
            {"args": {"cni": {"vm": {"name": "b"}}}},
            "K8S_POD_NAME=q;K8S_POD_NAMESPACE=n;K8S_POD_UID=u;K8S_POD_NAME=p",
            Named(PodRef("n", "p", "u"), None),
        ),
        ({}, "K8S_POD_INFRA_CONTAINER_ID=c", Named(None, None)),
        ({}, "K8S_POD_NAME=\udcff" + "x" * 300, Named(PodRef("", "?" + "x" * 252, ""), None)),
    ],
)
def test_whose_a_call_is_is_read_whatever_is_wrong_with_it(config: Any, args: str, expected: Named) -> None:
    assert named(Fields(config), args) == expected
