"""``python -m latentlab`` is the same as ``latentlab``."""

from latentlab.cli.main import run

run()
