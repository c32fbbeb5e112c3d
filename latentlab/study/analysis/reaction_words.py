"""What `reactions` found of a measurement, in words: the same on the terminal, in reports and in ``docs/metrics.md``."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
"""A reaction as it stands in ``analysis.json``: any field may be missing."""


def in_words(records: Sequence[Record]) -> str:
    """Return what the reactions of one predictor say, without a full stop."""
    count, agreeing = len(records), sum(map(agrees, records))
    if agreeing == count:
        return f"agrees with quality in all comparisons ({count})" if count else "not compared with quality"
    lowered = [one for one in records if _is_lowered(one)]
    aside = f" (made easier without better generation by {_tokenizers(lowered)})" if lowered else ""
    blind, alone, opposite = (
        _tokenizers([one for one in records if one.get("says") == says])
        for says in ("blind", "moves alone", "opposite")
    )
    return (
        f"blind to {blind}; moves alone under {alone}{aside}; opposite in {opposite}; agrees in {agreeing} of {count}"
    )


def of_card(records: Sequence[Record], name: str) -> str:
    """Return what the reactions of the measurement ``name`` and of its companions say, in sentences.

    Args:
        records: all reactions of a study.
        name: registered name; its columns are ``m_NAME`` and ``m_NAME.COMPANION``.
    """
    by_column = by_predictor(records)
    headline = f"m_{name}"
    companions = [column for column in by_column if column.startswith(f"{headline}.")]
    sentences = [f"{in_words(by_column.get(headline, []))}."]
    sentences += [f"Its {one.removeprefix(f'{headline}.')}: {in_words(by_column[one])}." for one in companions]
    return " ".join(sentences)


def by_predictor(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the reactions of each predictor, in order."""
    found: dict[str, list[Record]] = {}
    for one in records:
        found.setdefault(str(one.get("predictor", "")), []).append(one)
    return found


def agrees(record: Record) -> bool:
    """Return whether a measurement reacted as quality did."""
    return record.get("says") == "agrees"


def _is_lowered(record: Record) -> bool:
    """Return whether a training made the measurement easier and generation no better."""
    return (record.get("kind"), record.get("measurement"), record.get("says")) == ("training", "easier", "moves alone")


def _tokenizers(records: Sequence[Record]) -> str:
    return ", ".join(str(one.get("tokenizer", "")) for one in records) or "none"
