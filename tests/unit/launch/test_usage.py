"""The launchers' tests hold the C text against this one; here is what it has to say."""

from __future__ import annotations

import pytest

from cnvnet import VERSION
from cnvnet.launch.usage import explained

PLUGINS = ("cnv-bridge", "masquerade", "static-ip", "vm-bridge")


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_names_the_plugin_its_input_and_its_manual(name: str, argument: str) -> None:
    code, stdout, stderr = explained(name, "answers tests", argument)
    assert (code, stderr) == (0, b"")
    assert stdout.decode().startswith(f"{name}: a CNI plugin that answers tests.")
    assert "CNI_COMMAND" in stdout.decode()
    assert f"docs/{name}.md" in stdout.decode()


def test_the_version_is_one_line() -> None:
    assert explained("vm-bridge", "", "--version") == (0, f"vm-bridge {VERSION}\n".encode(), b"")


def test_any_other_argument_is_refused_by_name_even_if_it_is_no_utf_8() -> None:
    code, stdout, stderr = explained("static-ip", "", "\udcff")
    assert (code, stdout) == (2, b"")
    assert stderr.startswith(b"static-ip: \xff: no such option (--help, --version)")
