"""The command line, as ``fl-split`` and as ``python -m fl_split``; a door, nothing lives here."""

from __future__ import annotations

import sys
from importlib import import_module

from fl_split.clash import ClashError, check


def main() -> None:
    """Run the command line, if Python finds our packages."""
    try:
        check()
        command = import_module("simulations.cli.main")
    except ClashError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # imports take a while
        sys.exit(130)
    command.app()


if __name__ == "__main__":
    main()
