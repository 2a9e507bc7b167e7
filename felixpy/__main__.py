"""``python -m felixpy``."""

from felixpy.cli import main

main()
