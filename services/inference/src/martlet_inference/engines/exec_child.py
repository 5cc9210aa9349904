"""Runs a command that ends when its parent does:

    python -m martlet_inference.engines.exec_child PARENT_PID COMMAND...

An engine that outlived a killed replica would keep its memory and its device. The kernel's parent-death signal survives
``exec``, so the engine itself needs no change; where there is no such signal (not Linux) the command just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Ask for the signal, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the signal was asked for
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
