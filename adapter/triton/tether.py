"""Run a command that ends when the process that started it ends: `python tether.py <parent's pid> <command> …`.

Setting the death signal in the child, between fork and exec of a process with threads, is what `preexec_fn` is unsafe
for; a fresh interpreter does it safely and then becomes the command, under the same pid. Standard library only: it runs
with `-I -S`. The kernel sends the signal when the *thread* that started this process ends, so start it from a thread
that lives as long as the command should.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the command, to be sent SIGTERM when `parent` is gone."""
    parent, command = int(arguments[0]), arguments[1:]
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    # Python ignores SIGPIPE, and so does what it becomes: when the reader of its log dies, it still ends in good order.
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error.strerror}.")


if __name__ == "__main__":
    main(sys.argv[1:])
