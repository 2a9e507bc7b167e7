"""``python -m felixpy``, and the command ``felixpy``."""

from __future__ import annotations

import signal


def main() -> None:
    """Entry point. Until everything is imported, Ctrl-C ends the process as it ends others, not in a traceback."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from felixpy.commands.main import main as run

    signal.signal(signal.SIGINT, interrupt)
    run()


if __name__ == "__main__":
    main()
