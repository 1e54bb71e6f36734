"""`python -m foreshock`: the same as the `foreshock` command."""

from __future__ import annotations

from foreshock.cli import main

if __name__ == "__main__":
    main(prog_name="foreshock")
