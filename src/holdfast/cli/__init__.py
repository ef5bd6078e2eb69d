"""The command line: the only room that parses, prints, seeds and decides on precision."""

from holdfast.cli.deployment import Deployed, load_trained
from holdfast.cli.main import main

__all__ = ["Deployed", "load_trained", "main"]
