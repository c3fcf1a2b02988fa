"""`python -m cnvnet` is cnvctl."""

from cnvnet.cli import main

if __name__ == "__main__":
    main()
