"""The reference of all settings is made from the code, complete and current."""

import runpy
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field, PositiveInt

from latentlab.configuration import Strict
from mind.settings import SamplerSettings

DOCS = Path(__file__).parents[2] / "docs"
MADE = runpy.run_path(str(DOCS / "make_settings.py"))


class Base(Strict):
    """What others build on."""

    shared: int = 0
    """Said of the base."""


class Told(Base):
    """A table.

    Attributes:
        listed: said in the list,
            in two lines.
    """

    listed: PositiveInt
    below: Literal["a", "b"] | None = None
    """None for
    neither | both."""
    several: tuple[int, ...] = Field((), max_length=3)
    """Of them."""


class Silent(Base):
    """A table with a key that nothing is said of."""

    unexplained: int = 0


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "settings.md").read_text() == MADE["page"](), "run `make cards`"


def test_a_key_says_what_it_takes_and_means() -> None:
    lines = MADE["_table"]("a table", Told, [Told]).splitlines()
    assert lines[-4:] == [
        "| `shared` | integer | `0` | Said of the base. |",
        "| `listed` | integer > 0 | needed | Said in the list, in two lines. |",
        "| `below` | `a`, `b` or null | `null` | null for neither \\| both. |",
        "| `several` | list of integer at most 3 long | `[]` | Of them. |",
    ]
    assert set(MADE["meanings"](Told, [Base, Told])) == {"listed", "below", "several"}  # the base has its own table
    with pytest.raises(ValueError, match="Silent does not say what unexplained means"):
        MADE["meanings"](Silent)


def test_every_key_of_a_shipped_file_and_every_sampler_setting_is_there() -> None:
    page = (DOCS / "settings.md").read_text()
    root = DOCS.parent
    files = [*root.glob("latentlab/configs/tokenizers/*.yaml"), *root.glob("mind/configs/**/*.yaml")]
    keys = {key for file in files for key in yaml.safe_load(file.read_text())}
    assert len(files) > 20 and {"optimiser", "guidance", "rows"} <= keys
    for name in (*keys, *SamplerSettings.model_fields):
        assert f"| `{name}` |" in page, name
