"""``python -m felixpy``, and the command ``felixpy``."""

from __future__ import annotations

from felixpy.interrupt import plain_interrupt


def main() -> None:
    """Entry point."""
    with plain_interrupt():
        from felixpy.commands.main import main as run
    run()


if __name__ == "__main__":
    main()
