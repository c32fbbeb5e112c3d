"""Verdicts for reading: a table for the terminal, ``CLAIMS.md`` and ``claims.json``. The same verdicts give the same bytes."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentlab.claims.verdict import Verdict, short
from latentlab.files import write_json, write_text
from latentlab.report_table import markdown_row
from latentlab.study.table import FILE, TABLE_KEY

JSON_NAME = "claims.json"
_PLAIN_WIDTH = 200
_WORDS = ("confirmed", "refuted", "undecided")

_RULE = (
    "Every claim is put as conditions that must all hold; a condition is an effect with a threshold, or several of which one is "
    "enough (joined by *or*). **Confirmed**: in every condition the whole 95 % interval of an effect lies on the claim's side, "
    "and there are enough repetitions. **Refuted**: in one condition those of all its effects lie wholly on the other side, or "
    "short of the bound that is named there. "
    "**Undecided**: all else. Where one of several is enough for a word, the error of 5 % is shared among them (Bonferroni): "
    "intervals of a higher level are looked at than the 95 % that stand here. A verdict holds for the scale it names and no "
    "other; `n` counts repetitions (seeds, tokenizers, images), never samples of one run. Tokenizers that a study's own analysis "
    "holds out for validation are counted here, since a rank correlation fits nothing. Intervals over tokenizers treat those of "
    "one cluster as independent and are therefore somewhat short."
)


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print one row per claim to stdout, then why; plain text unless it is a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False, markup=False)
    table = Table(title=f"Claims: {_count(verdicts)}", title_justify="left")
    for column in ("claim", "", "verdict", "n", "effect", "value [95 %]"):
        table.add_column(column, overflow="fold")
    for one in verdicts:
        table.add_row(*map(Text, (one.id, one.claim, one.verdict, _n(one), one.effect or "-", _value(one))))
    console.print(table)
    for one in verdicts:
        console.print(Text(f"{one.id} {one.verdict}: {one.why}"), soft_wrap=True)  # one line each, also for grep


def write_page(
    verdicts: Sequence[Verdict], page: Path, command: str = "latentlab claims", table_sha256: str | None = None
) -> Path:
    """Write the page, which names the ``command`` that made it, and ``claims.json`` beside it, whose path is returned.

    Args:
        verdicts: of the claims.
        page: the Markdown file.
        command: what makes it again.
        table_sha256: hash of the table of the study of tokenizers, None without one; it stands with the verdicts on it.
    """
    write_text(page, "\n".join(page_lines(verdicts, command)) + "\n")
    file = page.with_name(JSON_NAME)
    write_json(file, as_json(verdicts, table_sha256))
    return file


def as_json(verdicts: Sequence[Verdict], table_sha256: str | None = None) -> list[dict[str, Any]]:
    """Return the verdicts as JSON values; those on the study of tokenizers with the hash of its table."""
    return [{**asdict(one), TABLE_KEY: table_sha256 if one.source.endswith(FILE) else None} for one in verdicts]


def page_lines(verdicts: Sequence[Verdict], command: str = "latentlab claims") -> list[str]:
    """Return the page in Markdown: the rule, the table, then each claim with its evidence and the command."""
    head = ("", "claim", "verdict", "n", "effect", "value [95 %]")
    lines = [
        "# Published claims, judged at the scale of these studies",
        "",
        _RULE,
        "",
        f"{_count(verdicts)}. Made by",
        "",
    ]
    lines += [f"    {command}", "", markdown_row(head), markdown_row(["---"] * len(head))]
    lines += [
        markdown_row((f"[{v.id}](#{v.id.lower()})", v.claim, f"**{v.verdict}**", _n(v), v.effect or "-", _value(v)))
        for v in verdicts
    ]
    for one in verdicts:
        lines += ["", *_section(one)]
    return lines


def _section(one: Verdict) -> list[str]:
    facts = [
        ("published", one.published),
        ("scale", one.scale),
        ("why", "".join(f"\n  * {_plain(part)}" for part in one.why.split("; "))),
        ("results", f"[{one.source}]({one.source})" if one.source and "*" not in one.source else one.source),
        ("command", f"`{one.command}`"),
    ]
    listed = [f"* {name}:{'' if text.startswith(chr(10)) else ' '}{text}" for name, text in facts if text]
    return [f"## {one.id}", "", f"{one.claim}: **{one.verdict}**.", "", *listed]


def _plain(text: str) -> str:
    """Keep what Markdown would read as a tag or as emphasis."""
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _count(verdicts: Sequence[Verdict]) -> str:
    words = [one.verdict for one in verdicts]
    return ", ".join(f"{words.count(word)} {word}" for word in _WORDS)  # type: ignore[arg-type]


def _n(one: Verdict) -> str:
    return "-" if one.n is None else str(one.n)


def _value(one: Verdict) -> str:
    if one.value is None:
        return "-"
    if one.low is None or one.high is None:
        return f"{short(one.value)} [-]"
    return f"{short(one.value)} [{short(one.low)}, {short(one.high)}]"
