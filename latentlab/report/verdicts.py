"""Verdicts on published claims."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from latentlab.report.contents import Records
from latentlab.report.records import shown

_SIGNS = {"confirmed": "✓", "refuted": "✗", "undecided": "?"}


@dataclass(frozen=True)
class Verdict:
    """One claim in words; a sign beside the verdict spares readers the colour."""

    id: str
    claim: str
    verdict: str
    sign: str
    evidence: str
    why: str
    facts: tuple[tuple[str, str], ...]


def verdicts_of(claims: Records) -> list[Verdict]:
    """Return the claims in the order of the file."""
    return [_verdict(claim) for claim in claims]


def counts_of(verdicts: list[Verdict]) -> str:
    """Return ``5 confirmed, 1 refuted``."""
    counted = Counter(verdict.verdict for verdict in verdicts)
    return ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common())


def _verdict(claim: dict[str, Any]) -> Verdict:
    verdict = shown(claim.get("verdict"))
    facts = ((name, shown(claim.get(name))) for name in ("scale", "published", "source", "command"))
    return Verdict(
        id=shown(claim.get("id")),
        claim=shown(claim.get("claim")),
        verdict=verdict,
        sign=_SIGNS.get(verdict, ""),
        evidence=_evidence(claim),
        why=shown(claim.get("why")),
        facts=tuple((name, text) for name, text in facts if text != "–"),
    )


def _evidence(claim: dict[str, Any]) -> str:
    """Return ``effect: value [low, high], n = 24`` as far as they are there."""
    value, low, high, n = (shown(claim.get(name)) for name in ("value", "low", "high", "n"))
    parts = [shown(claim.get("effect")), value if low == "–" else f"{value} [{low}, {high}]", f"n = {n}"]
    return " · ".join(part for part in parts if "–" not in (part, part.removeprefix("n = ")))
