"""Which boot of the kernel this is."""

from __future__ import annotations

from functools import cache


def boot_id() -> str:
    """The random id that the kernel has given this boot, "" where /proc is not mounted."""
    try:
        return _read()
    except OSError:
        return ""


@cache
def _read() -> str:
    with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
        return (file.read() or b"").decode().strip()
