"""Fixtures of the functional tests: each gets a host of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.harness import Node, a_node


@pytest.fixture(autouse=True)
def way_of_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked `alone` gets no agent from the harness, whatever CNV_THROUGH says."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("alone"):
            patch.setattr(harness, "through", "")
        yield


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with a_node(tmp_path) as made:
        yield made


# The last commit before schema 2 of the leases and version 2 of the guards.
OLDER = "378e07bc6bb931b89fec3f69da52d3189fdb4378"
ROOT = Path(__file__).parents[2]
MODULES = {
    "cnv-bridge": "cnvnet.plugins.cnv_bridge",
    "masquerade": "cnvnet.plugins.masquerade",
    "vm-bridge": "cnvnet.plugins.vm_bridge",
    "static-ip": "cnvnet.ipam.static_ip",
}


@pytest.fixture(scope="session")
def older_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the executables as they were, out of the repository's history."""
    folder = tmp_path_factory.mktemp("older")
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", OLDER, "cnvnet", "plugins", "ipam"], capture_output=True, check=False
    )
    if archive.returncode != 0:
        pytest.skip(f"the repository's history does not reach back to {OLDER} (git fetch --unshallow)")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    python = Path(harness.installed("cnv-bridge")).parent / Path(sys.executable).name
    for name, module in MODULES.items():
        main = f"import sys; from {module} import main; sys.exit(main())"
        (folder / name).write_text(f"#!/bin/sh\nPYTHONPATH={folder} exec {python} -P -c '{main}'\n")
        (folder / name).chmod(0o755)
    return folder
