"""A configuration that names what is no file: refused at once, and the calls of other networks go on."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.functional.agent.launcher_calls import cni
from tests.functional.agent.own_agent import running_agent
from tests.harness import Node, Outcome
from tests.unit.kernel.test_regular_file import make_odd

pytestmark = pytest.mark.alone

# More than an agent has places for, in more networks than one may use up.
CALLS = 80
NETWORKS = 13


def keys(path: str, network: str = "odd") -> dict[str, Any]:
    ipam = {"type": "static-ip", "subnet": "10.1.0.0/16", "resolvConf": path}
    return {"name": network, "ipam": ipam}


def add(node: Node, config: dict[str, Any], container: str = "dummy-0") -> tuple[Outcome, float]:
    begun = time.monotonic()
    done = cni(node, "ADD", node.pod(), config=config, container_id=container, timeout=20)
    return done, time.monotonic() - begun


@pytest.mark.parametrize("through", ["off", "auto"])
def test_what_is_no_file_is_refused_at_once(node: Node, tmp_path: Path, through: str) -> None:
    pod = node.pod()
    (tmp_path / "odd").mkdir()

    def refuse_all() -> None:
        for path, reason in make_odd(tmp_path / "odd").items():
            done = cni(node, "ADD", pod, config=keys(path), env={"CNVNET_AGENT": through}, timeout=20)
            error = done.error()
            assert (error["code"], error["msg"]) == (7, f"ipam.resolvConf: {path}: {reason}")
            assert list(pod.links()) == ["lo"]

    if through == "off":
        refuse_all()
        return
    with running_agent(node) as agent:
        refuse_all()
        assert agent.metrics()['cnvnet_cni_calls_total{code="7",command="ADD",plugin="cnv-bridge"}'] > 10


def test_the_calls_of_other_networks_go_on(node: Node, tmp_path: Path) -> None:
    """All places of an agent were taken by them, and then no other call was run."""
    os.mkfifo(tmp_path / "fifo")
    with running_agent(node), ThreadPoolExecutor(CALLS) as executor:
        waiting = [
            executor.submit(
                add, node, keys(str(tmp_path / "fifo"), f"net{index % NETWORKS}"), f"odd-{index}"
            )
            for index in range(CALLS)
        ]
        done, _ = add(node, {"name": "other"})
        done.ok()
        codes = {each.result()[0].error()["code"] for each in waiting}
    assert codes == {7}
