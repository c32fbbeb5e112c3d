"""``python -m latentlab`` is ``latentlab``."""

from latentlab.cli.main import run

run()
