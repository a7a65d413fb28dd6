"""The command `mt2st-fast`, or `python -m mt2st_fast`: its imports take seconds, and may be interrupted as well."""

from __future__ import annotations

import os

from mt2st_fast.interrupts import begin_command, importing, leave


def main() -> None:
    """Run a command, as `mt2st_fast.cli.main`; Ctrl-C ends it in the same way however early it comes."""
    try:
        os.getcwd()
    except FileNotFoundError:
        # Torch's matrix products would end the process there, with a message of another library.
        os.write(2, b"mt2st-fast: the working directory has been deleted; change to another one (cd)\n")
        os._exit(2)
    begin_command()
    with importing():
        from mt2st_fast.cli import main as run

    try:
        run()
    except KeyboardInterrupt:
        leave()


if __name__ == "__main__":
    main()
