"""What an ADD leaves behind: its record, the lock of it, and how it is taken back."""

from __future__ import annotations

# Where records, locks and the agent's socket are, unless CNVNET_RUNDIR names another folder.
RUNDIR = "/run/cnvnet"
