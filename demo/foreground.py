"""Run a command as the foreground group of its terminal: `python -m demo.foreground COMMAND ARGUMENT...`.

Ctrl-C then reaches the command alone, not the `make` that started it, and make's exit code is the command's.
Without a terminal, or in the background of one, it just runs the command: signals to the group still arrive.
"""

import os
import signal
import sys


def take_foreground(terminal: int) -> None:
    """Move this process to a new group and hand it the terminal, if its present group has it."""
    try:
        if os.tcgetpgrp(terminal) != os.getpgrp():
            return
        os.setpgid(0, 0)
        # Until it is done we are in the background, where touching the terminal would stop us.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(terminal, os.getpgrp())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        # Ctrl-Z would stop the command but not make, and leave the user with a dead terminal.
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    except OSError:
        return


if __name__ == "__main__":
    if sys.stdin.isatty():
        take_foreground(sys.stdin.fileno())
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606
