"""The version stands in cnvnet/__init__.py and nowhere else."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest

from cnvnet import VERSION

CHECKOUT = Path(__file__).resolve().parents[2]


def test_it_is_a_version_that_packagers_know() -> None:
    """PEP 440, as `scripts/lock` and pip sort it: MAJOR.MINOR.PATCH, with .devN or rcN before a release."""
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", VERSION)


def test_the_package_takes_it_from_there() -> None:
    config = ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: cnvnet.VERSION"
    assert version("cnvnet") == VERSION


def test_the_launcher_takes_it_from_there() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not here (apt-get install make, or scripts/setup test)")
    done = subprocess.run(
        ["make", "-s", "-C", CHECKOUT / "launcher", "--eval", "release: ; @echo $(RELEASE)", "release"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{VERSION}\n"


def test_no_other_file_of_the_project_has_it() -> None:
    """What stands in the packaging and build files would be forgotten at the next release."""
    for name in (
        "setup.cfg",
        "pyproject.toml",
        "launcher/Makefile",
        *(f"launcher/{path.name}" for path in (CHECKOUT / "launcher").glob("*.[ch]")),
        "scripts/install-cni",
    ):
        lines = (CHECKOUT / name).read_text().splitlines()
        of_cni = "supportedVersions", '"0.1.0'
        found = [line for line in lines if VERSION in line and not any(each in line for each in of_cni)]
        assert found == [], name


@pytest.mark.parametrize("name", ["daemonset", "deployment"])
def test_the_manifests_have_it_in_the_name_of_the_image(name: str) -> None:
    """kubectl knows no other place to take it from; RELEASING.md names them."""
    text = (CHECKOUT / f"conf/kustomize/base/system/{name}.yaml").read_text()
    assert re.findall(r"image: (.*)", text) == [f"localhost/cnvnet:{VERSION}"]
