"""The command line: the only room that parses, prints, seeds and decides on precision."""

from holdfast.cli.main import main

__all__ = ["main"]
