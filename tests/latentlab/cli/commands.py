"""Commands as a user gives them, and a tokenizer as small as they get."""

import os
import re
import subprocess
import sys

from typer.testing import CliRunner, Result

from latentlab.cli.main import app

TINY = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 4, "resolution": 32, "attn_resolutions": ()}


def latentlab(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="latentlab")


def refusal(*arguments: object, code: int = 2) -> str:
    """Run a command that must fail with one line on stderr; return the line."""
    result = latentlab(*arguments)
    assert result.exit_code == code and result.stdout == "", result.output
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "latentlab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
