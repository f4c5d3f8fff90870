"""``python -m unetaccel``: the command, for launchers that want a module."""

from .cli import main

main()
