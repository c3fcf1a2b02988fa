"""Systems that have less than a usual one: what the plugin needs is what it brings."""

from __future__ import annotations

import subprocess

from cnvnet.plugins.cnv_bridge import guards

WITHOUT_PROTOCOLS = "if [ -e /etc/protocols ]; then mount --bind /dev/null /etc/protocols; fi; exec nft -f -"


def test_the_guards_load_where_protocols_have_no_names() -> None:
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-ec", WITHOUT_PROTOCOLS],
        input=guards.TEXT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
