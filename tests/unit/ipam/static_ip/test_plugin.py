"""The plugin behind the skeleton, as a process or the agent runs it: nothing gets out as a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnvnet.cni import skel
from cnvnet.cni.request import Request, parse
from cnvnet.diagnostics import collected
from cnvnet.ipam.sqlite import Sqlite
from cnvnet.ipam.static_ip import load
from cnvnet.ipam.static_ip.plugin import StaticIP
from tests.unit.ipam.static_ip.test_config import IPAM, JSON

CONFIG = {"cniVersion": "1.1.0", "name": "blue", "ipam": {"subnet": "10.1.0.0/24"}}


def environment(
    folder: Path, container: str = "c1", args: str = "VM_NAME=vm1", command: str = "ADD"
) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": "/run/netns/nowhere",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": args,
        "CNVNET_STATEDIR": str(folder),
    }


def request(folder: Path, container: str = "c1", args: str = "VM_NAME=vm1", **keys: Any) -> Request:
    return parse(environment(folder, container, args), json.dumps({**CONFIG, **keys}).encode())


@pytest.fixture
def plugin() -> StaticIP:
    return StaticIP()


def test_the_mac_comes_with_the_assignment_and_is_the_same_after_a_restart(
    plugin: StaticIP, tmp_path: Path
) -> None:
    first = plugin.assign(request(tmp_path))
    plugin.release(request(tmp_path))
    again = plugin.assign(request(tmp_path, "c2"))
    assert first.mac.startswith("0a:63:")
    assert (again.mac, again.result, again.role) == (first.mac, first.result, "active")


def test_the_mac_somebody_asked_for_is_handed_back(plugin: StaticIP, tmp_path: Path) -> None:
    wished = {"mac": "0A:63:00:00:00:07"}
    assert plugin.assign(request(tmp_path, runtimeConfig=wished)).mac == "0a:63:00:00:00:07"


def test_a_network_without_macs_hands_none_over(plugin: StaticIP, tmp_path: Path) -> None:
    ipam = {"subnet": "10.1.0.0/24", "mac": "off"}
    assert plugin.assign(request(tmp_path, ipam=ipam)).mac == ""


def test_the_role_tells_a_target_from_the_rest(plugin: StaticIP, tmp_path: Path) -> None:
    plugin.assign(request(tmp_path))
    assert plugin.assign(request(tmp_path, "c2", "VM_NAME=vm1;VM_ROLE=target")).role == "target"
    plugin.release(request(tmp_path))
    # A retry after the migration has ended is about an active pod.
    assert plugin.assign(request(tmp_path, "c2", "VM_NAME=vm1;VM_ROLE=target")).role == "active"


@pytest.mark.parametrize(
    ("release", "said"), [("vm-deleted", True), ("never", True), ("pod", False), (None, False)]
)
def test_in_kubernetes_an_add_says_that_a_release_policy_for_vms_has_no_effect(
    plugin: StaticIP, tmp_path: Path, release: str | None, said: bool
) -> None:
    ipam = {"subnet": "10.1.0.0/24", "nodeLocal": True, "release": release}
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=virt-launcher-vm1"
    with collected() as lines:
        plugin.assign(request(tmp_path, "c1", pod, ipam=ipam))
        plugin.status(request(tmp_path, "c1", pod, ipam=ipam))
        plugin.assign(request(tmp_path, "c2", ipam=ipam))
    text = (
        f"ipam.release: {release} has no effect in Kubernetes: virt-launcher-vm1 is not known to be a "
        "virtual machine, its address lasts as long as the container"
    )
    assert lines == ([text] if said else [])


def test_an_assignment_can_be_undone(plugin: StaticIP, tmp_path: Path) -> None:
    asked = request(tmp_path)
    plugin.revert(asked, plugin.assign(asked))
    with Sqlite(str(tmp_path)).transaction() as ledger:
        assert list(ledger.connection.execute("SELECT * FROM addresses")) == []


def test_a_target_outside_the_ranges_is_refused_and_holds_nothing(plugin: StaticIP, tmp_path: Path) -> None:
    plugin.assign(request(tmp_path))
    done = skel.run(
        "static-ip",
        load,
        environment(tmp_path, "c2", "VM_NAME=vm1;VM_ROLE=target"),
        lambda: json.dumps({**CONFIG, "ipam": {"subnet": "10.2.0.0/24"}}).encode(),
    )
    assert "is in none of its ranges" in json.loads(done.stdout)["msg"]
    with Sqlite(str(tmp_path)).transaction() as ledger:
        assert ledger.held_by("blue", "c2", "eth0") is None


@settings(deadline=None)
@given(JSON | IPAM, JSON, JSON, st.sampled_from(["ADD", "CHECK", "DEL", "GC", "STATUS"]))
def test_whatever_the_configuration_there_is_a_result_or_an_error_and_an_error_changes_nothing(
    ipam: Any, runtime: Any, args: Any, command: str
) -> None:
    document = {**CONFIG, "ipam": ipam, "runtimeConfig": runtime, "args": {"cni": args}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        env = environment(folder, command=command)
        done = skel.run("static-ip", load, env, lambda: json.dumps(document).encode())
        assert b"Traceback" not in done.stderr
        if done.exit:
            error = json.loads(done.stdout)
            assert done.exit == 1
            assert (error["code"] in (7, 50)) or "dataDir" in str(ipam), error
            assert not folder.exists()


FORBIDDEN = {
    "netaddr",
    "pyroute2",
    "dataclasses",
    "logging",
    "subprocess",
    "argparse",
    "pathlib",
    "asyncio",
    "ctypes",
}


def test_importing_the_plugin_costs_what_it_must() -> None:
    program = "import json, sys; {}; print(json.dumps(sorted(sys.modules)))"

    def loaded(statement: str) -> set[str]:
        command = [sys.executable, "-I", "-c", program.format(statement)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return set(json.loads(done.stdout))

    # site may import anything (an editable install does), so only what the statement adds counts.
    before = loaded("pass")
    assert not (loaded("import cnvnet.ipam.static_ip.plugin") - before) & (FORBIDDEN | {"sqlite3"})
    assert "cnvnet.ipam.static_ip.plugin" not in loaded("import cnvnet.ipam.static_ip")
