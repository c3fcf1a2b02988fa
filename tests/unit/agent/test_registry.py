"""The agent has every plugin of the table."""

from __future__ import annotations

from cnvnet import executables
from cnvnet.agent import registry
from cnvnet.ipam.static_ip.plugin import StaticIP
from tests.fakes.kernel import FakeKernel


def test_the_agent_runs_every_plugin() -> None:
    loads = registry.load_all(FakeKernel(), StaticIP())
    assert {name: load({}).name for name, load in loads.items()} == {
        name: name for name in executables.EXECUTABLES
    }
