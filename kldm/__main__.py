"""``python -m kldm`` is ``kldm``."""

from kldm.cli import program

program()
