"""``python -m mcompose`` is the ``mcompose`` command."""

from mcompose.cli.app import main

main()
