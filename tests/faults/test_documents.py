"""Configurations and environments that are nearly right, through each plugin on a kernel in memory."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cnvnet.cni import skel
from cnvnet.ipam.static_ip.plugin import StaticIP
from tests.faults.conftest import TIMES
from tests.faults.mutations import documents
from tests.unit.plugins.cnv_bridge import fake_node as cnv_bridge
from tests.unit.plugins.masquerade import masquerade_fake_pod as masquerade
from tests.unit.plugins.vm_bridge import vm_bridge_fake_pod as vm_bridge

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120 + 60 * TIMES)]

COUNT = 1_500 * TIMES
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "add", "")
PREVIOUS: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {"name": "veth0", "mac": "02:00:00:00:00:02"},
        {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/pod"},
    ],
    "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 2}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.96.0.10"]},
}
BASE: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "net",
    "args": {"cni": {"vm": {"namespace": "default", "name": "vm1", "uid": "u", "role": "target"}}},
    "runtimeConfig": {"mac": "02:00:00:00:00:04", "ips": ["10.0.0.3/24"]},
    "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}],
    "prevResult": PREVIOUS,
}
IPAM: dict[str, Any] = {
    "type": "static-ip",
    "nodeLocal": True,
    "ranges": [
        [{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.2", "rangeEnd": "10.0.0.9", "gateway": "10.0.0.1"}]
    ],
    "exclude": ["10.0.0.8/31"],
    "routes": [{"dst": "192.0.2.0/24", "gw": "10.0.0.1"}],
    "mac": {"prefix": "0a:63"},
    "cooldown": "60s",
}
BINDING = {"tapName": "tap0", "queues": 2, "guestServices": {"required": False}, "mtu": 1400}
SOUND: dict[str, list[dict[str, Any]]] = {
    "cnv-bridge": [{**BASE, **cnv_bridge.FULL}, {**BASE, "bridge": "br0", "macspoofchk": True}],
    "masquerade": [{**BASE, **masquerade.FULL}, {**BASE, **BINDING}],
    "vm-bridge": [{**BASE, **BINDING}, {**BASE, "lanDHCP": True}],
    "static-ip": [
        {**BASE, "ipam": IPAM},
        {**BASE, "ipam": {**IPAM, "addresses": [{"address": "10.0.0.7/24"}]}},
    ],
}


def loaded(plugin: str, folder: Path) -> Callable[[Mapping[str, str]], skel.Plugin]:
    """The plugin on a fresh kernel in memory."""
    if plugin == "static-ip":
        made: skel.Plugin = StaticIP()
    elif plugin == "cnv-bridge":
        made = cnv_bridge.World(folder).plugin
    else:
        module = masquerade if plugin == "masquerade" else vm_bridge
        made = module.World(folder).plugin
    return lambda _: made


def environment(chance: random.Random, folder: Path) -> dict[str, str]:
    return {
        "CNI_COMMAND": chance.choice(COMMANDS),
        "CNI_CONTAINERID": chance.choice(["c", "c", "c", "", "a/b", "c" * 300]),
        "CNI_NETNS": chance.choice([cnv_bridge.POD, cnv_bridge.POD, "", "/dev/zero", "/nowhere", "\udcff"]),
        "CNI_IFNAME": chance.choice(["eth0", "eth0", "eth0", "", "a b", "x" * 16, "\udcff", '";}']),
        "CNI_ARGS": chance.choice(
            ["", "IgnoreUnknown=1;A=B", "=;=", "K8S_POD_NAME=p;K8S_POD_NAMESPACE=n", "MAC=x"]
        ),
        "CNI_PATH": "/nowhere",
        "CNVNET_RUNDIR": str(folder / "run"),
        "CNVNET_STATEDIR": str(folder / "state"),
    }


@pytest.mark.parametrize("plugin", SOUND)
def test_every_document_gets_an_answer_as_the_spec_has_it(plugin: str, tmp_path: Path) -> None:
    chance, made_up = random.Random(1), documents(2, SOUND[plugin])
    load = loaded(plugin, tmp_path)
    codes = Counter[int]()
    for _ in range(COUNT):
        env, document = environment(chance, tmp_path), next(made_up)
        begun = time.monotonic()
        response = skel.run(plugin, load, env, partial(bytes, document), own_netns="/nowhere")
        assert time.monotonic() - begun < 20, (env, document)
        codes[judged(response, env, document)] += 1
    assert codes[0] > COUNT / 20, codes
    assert codes[7] > COUNT / 60, codes


def judged(response: skel.Response, env: Mapping[str, str], document: bytes) -> int:
    """The code of an answer that is one."""
    seen = (response, env, document)
    assert b"Traceback" not in response.stderr, seen
    if response.exit == 0:
        return 0 if not response.stdout else (json.loads(response.stdout), 0)[1]
    assert response.exit == 1, seen
    error: dict[str, Any] = json.loads(response.stdout)
    assert set(error) <= {"cniVersion", "code", "msg", "details"}, seen
    assert error["msg"], seen
    assert "\n" not in error["msg"], seen
    assert error["code"] != 999, seen
    code: int = error["code"]
    return code
