"""Metric cards: complete, true to the signatures, shown by tests that exist, and the page made from them is current."""

import inspect
import json
import re
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentlab.cards import all_cards, card_markdown, card_text, options_of
from latentlab.cli.main import app
from latentlab.registry import BUILTIN, card_of, find_measurement, keyword_parameters

ROOT = Path(__file__).parents[2]
MAKE = runpy.run_path(str(ROOT / "docs" / "make_cards.py"))


@pytest.mark.parametrize("name", BUILTIN)
def test_card_is_complete(name: str) -> None:
    card = card_of(name)
    assert card.name == name
    for field in ("title", "summary", "formula", "unit", "range", "source", "invariances", "confounds"):
        assert getattr(card, field), f"{name}: {field} is empty"
    assert card.known_values and (card.variants or not options_of(name))
    assert set(card.needs) <= {"labels", "masks", "grid", "codes", "images", "encode", "decode", "trajectory"}


@pytest.mark.parametrize("name", BUILTIN)
def test_variants_name_options_the_measurement_has(name: str) -> None:
    known = keyword_parameters(find_measurement(name))
    for written in card_of(name).variants:
        option = written.partition("=")[0].strip()
        assert option in known, f"{name}: the card's variant '{written}' names no option of it ({', '.join(known)})"


@pytest.mark.parametrize("name", BUILTIN)
def test_the_test_it_names_exists(name: str) -> None:
    file, _, test = card_of(name).test.partition("::")
    assert re.search(rf"^def {re.escape(test)}\(", (ROOT / file).read_text(), re.MULTILINE), card_of(name).test


@pytest.mark.parametrize("name", BUILTIN)
def test_docstring_documents_every_option(name: str) -> None:
    text = inspect.getdoc(find_measurement(name)) or ""
    for option in options_of(name):
        assert re.search(rf"^\s*{option}: ", text, re.MULTILINE), f"{name}: option '{option}' is not documented"


def test_page_is_made_from_the_cards() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == MAKE["page"](), "run `make cards`"


def test_every_card_ends_with_what_the_reference_study_says_of_it(tmp_path: Path) -> None:
    """Once its analysis is there and tells of reactions; until then cards are as they are in the code."""
    plain = all_cards({name: card_of(name) for name in BUILTIN})
    assert MAKE["page"](tmp_path) == plain
    analysis = tmp_path / "studies" / "diffusability" / "analysis.json"
    analysis.parent.mkdir(parents=True)
    analysis.write_text(json.dumps({"correlations": []}))
    assert MAKE["page"](tmp_path) == plain
    seen = {"predictor": "m_viv", "kind": "control", "tokenizer": "ae-cells", "measurement": "same", "says": "blind"}
    analysis.write_text(json.dumps({"reactions": [seen, {**seen, "tokenizer": "kl", "says": "agrees"}]}))
    page = MAKE["page"](tmp_path)
    start = "In the reference study (studies/diffusability): "
    told = f"{start}blind to ae-cells; moves alone under none; opposite in none; agrees in 1 of 2."
    assert f"{card_markdown('viv')}\n{told}\n\n## " in page
    assert f"{card_markdown('lnc')}\n{start}not compared with quality.\n\n## " in page
    assert page.count(start) == len(BUILTIN) and page.rstrip().splitlines()[-1].startswith(start)


def test_links_of_the_page_lead_somewhere() -> None:
    page = all_cards({"viv": card_of("viv")})
    (anchor,) = re.findall(r"\(#([^)]+)\)", page)
    assert anchor == "viv-velocity-irreducible-variance" and "## viv: Velocity irreducible variance" in page


def test_explain_prints_the_card_and_the_list() -> None:
    printed = CliRunner().invoke(app, ["explain", "viv"])
    assert printed.exit_code == 0 and printed.stdout == card_text("viv")
    for part in ("lower is easier", "reduce='sum'", "small samples: too low", "0.7 pi/2", "tests/analyses/"):
        assert part in printed.stdout
    listed = CliRunner().invoke(app, ["explain"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(BUILTIN)
    parsed = json.loads(CliRunner().invoke(app, ["explain", "viv", "--json"]).stdout)
    assert parsed[0]["better"] == "lower" and "reduce='sum'" in parsed[0]["variants"]


def test_explain_suggests_near_names() -> None:
    result = CliRunner().invoke(app, ["explain", "viw"])
    assert result.exit_code == 2 and "Did you mean viv" in result.stderr


def test_markdown_escapes_the_bars_of_formulas() -> None:
    assert "VIV(c z) = \\|c\\| VIV(z)" in card_markdown("viv")
