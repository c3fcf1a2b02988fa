"""python -m cnvnet.agent, for plugins: they know their interpreter and not where the executables are."""

from __future__ import annotations

from cnvnet.agent import main

if __name__ == "__main__":
    main()
