"""The command `mt2st-fast`, or `python -m mt2st_fast`: its imports take seconds, and may be interrupted as well."""

from __future__ import annotations

import os
import signal

from mt2st_fast.errors import INTERRUPTED


def main() -> None:
    """Run a command, as `mt2st_fast.cli.main`; Ctrl-C ends it in the same way however early it comes."""
    try:
        os.getcwd()
    except FileNotFoundError:
        # Torch's matrix products would end the process there, with a message of another library.
        os.write(2, b"mt2st-fast: the working directory has been deleted; change to another one (cd)\n")
        os._exit(2)
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored, as under nohup
    if is_usual:  # an exception would be one of somebody's import, who may catch it or say something else
        signal.signal(signal.SIGINT, _leave)
    from mt2st_fast.cli import main as run

    try:
        if is_usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        _leave()


def _leave(*signal_and_frame: object) -> None:
    del signal_and_frame
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    main()
