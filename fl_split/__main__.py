"""The command line, as ``fl-split`` and as ``python -m fl_split``; a door, nothing lives here."""

from __future__ import annotations

import gc
import signal
import sys
from importlib import import_module

from fl_split.clash import ClashError, check


def main() -> None:
    """Run the command line, if Python finds our packages."""
    gc.set_threshold(700, 10, 100)  # modules stay: look through the oldest objects less often
    try:
        check()
        command = import_module("simulations.cli.main")
    except ClashError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # imports take a while
        sys.exit(130)
    try:
        command.app()
    finally:  # what a run leaves is written: Ctrl-C again, while Python ends, is no error
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
