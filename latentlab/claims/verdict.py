"""From effects with intervals to one word: confirmed, refuted or undecided at this scale.

A claim is put as conditions that must all hold; a condition may have alternatives of which one is enough. Every effect has a
threshold and a side. With enough repetitions, an effect speaks for the claim when its whole 95 % interval lies on the claim's
side of the threshold, against it when the whole interval lies on the other side, and otherwise leaves it open. That something
differs from 0 has no other side; there the interval must lie short of another bound (`Effect.refuted_at`), from which on a
difference matters, to speak against.

    refuted     in some condition every effect speaks against it and none for it (a small difference that is certain does both)
    confirmed   in every condition some effect speaks for it, and nothing is missing
    undecided   all else

Where one of several is enough for a word, the error is shared among them (Bonferroni): "for" with a alternatives is read off
the interval of level 1 - 0.05/a, "against" with c conditions off that of level 1 - 0.05/c. Where all must agree, 95 % each is
enough (Berger, Technometrics 24, 1982: an intersection-union test keeps the level of its parts).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from latentlab.measurement import Interval

Word = Literal["confirmed", "refuted", "undecided"]
Ends = Callable[[float], Interval]
"""Level, 0.95 say -> ends of the interval; infinite where there are too few repetitions for any."""

Side = Literal["above", "below"]

LEVEL = 0.95
_MOST_NEEDED = 1000


@dataclass(frozen=True)
class Effect:
    """One number that a claim is about.

    Attributes:
        name: what it is, in words.
        value: estimate.
        ends: its interval at a level.
        n: repetitions behind it.
        unit: what they are (``seeds``, ``tokenizers``).
        least: repetitions from which on it may decide.
        threshold: where the claim begins.
        side: on which side of it.
        because: why this threshold.
        refuted_at: where an interval on the other side of it speaks against; None: at the threshold.
    """

    name: str
    value: float
    ends: Ends
    n: int
    unit: str
    least: int
    threshold: float
    side: Side
    because: str
    refuted_at: float | None = None

    @property
    def interval(self) -> Interval | None:
        """95 %; None where there are too few repetitions for one."""
        low, high = self.ends(LEVEL)
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None

    @property
    def margin(self) -> float:
        """Distance of the estimate from the threshold, positive on the claim's side."""
        return self.value - self.threshold if self.side == "above" else self.threshold - self.value

    def speaks_for(self, level: float = LEVEL) -> bool:
        """Whether there are enough repetitions and the whole interval is on the claim's side."""
        low, high = self.ends(level)
        return self.n >= self.least and (low > self.threshold if self.side == "above" else high < self.threshold)

    def speaks_against(self, level: float = LEVEL) -> bool:
        """Whether there are enough repetitions and the whole interval is on the other side, of ``refuted_at`` if there is one."""
        low, high = self.ends(level)
        return self.n >= self.least and (high < self._bound if self.side == "above" else low > self._bound)

    @property
    def _bound(self) -> float:
        return self.threshold if self.refuted_at is None else self.refuted_at

    def needed_for(self, level: float = LEVEL) -> int | None:
        """Return about how many repetitions would speak for the claim were the estimate the truth; None: more than 1,000."""
        low, high = self.ends(level)
        return self._needed(self.margin, self.value - low if self.side == "above" else high - self.value)

    def needed_against(self, level: float = LEVEL) -> int | None:
        """Return about how many repetitions would speak against it, likewise."""
        low, high = self.ends(level)
        margin = self._bound - self.value if self.side == "above" else self.value - self._bound
        return self._needed(margin, high - self.value if self.side == "above" else self.value - low)

    def _needed(self, margin: float, half: float) -> int | None:
        """Return how many repetitions bring the end of the interval that is ``half`` away to within ``margin``."""
        if not math.isfinite(half):
            return self.least
        if margin <= 0 or self.n * (half / margin) ** 2 > _MOST_NEEDED:
            return None
        return max(self.least, math.ceil(self.n * (half / margin) ** 2))

    def sentence(self) -> str:
        """Say value, interval, n and threshold."""
        return f"{self.name}: {self.estimate()} (n={self.n}, {self.unit}) {self.demand()}"

    def estimate(self) -> str:
        """Say value and interval."""
        return with_ends(self.value, self.ends)

    def demand(self) -> str:
        """Say what the claim asks of it."""
        other = "below" if self.side == "above" else "above"
        refuted = "" if self.refuted_at is None else f", refuted {other} {short(self.refuted_at)}"
        return f"against {self.side} {short(self.threshold)}{refuted} ({self.because})"


@dataclass(frozen=True)
class Judgement:
    """What the function of a claim says.

    Attributes:
        conditions: all must hold; each a tuple of effects of which one is enough.
        scale: what the numbers are of: data, sizes, repetitions.
        command: made the results.
        source: the results, relative to the studies folder.
        notes: what a reader must know to trust it.
        missing: parts of the claim that these results say nothing about.
    """

    conditions: Sequence[tuple[Effect, ...]]
    scale: str
    command: str
    source: str
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()

    @property
    def word(self) -> Word:
        """Apply the rule."""
        against = _shared_by(self.conditions)
        hold = [any(effect.speaks_for(_shared_by(one)) for effect in one) for one in self.conditions]
        fail = [all(effect.speaks_against(against) for effect in one) for one in self.conditions]
        if any(fails and not holds for fails, holds in zip(fail, hold, strict=True)):
            return "refuted"
        return "confirmed" if all(hold) and self.conditions and not self.missing else "undecided"

    @property
    def headline(self) -> Effect | None:
        """The effect that the word hangs on: of the condition that holds least, the effect that holds best."""
        best = [max(one, key=_strength) for one in self.conditions]
        return min(best, key=_strength) if best else None

    def why(self) -> str:
        """Say every effect, what is missing, what would decide, and the notes."""
        parts = [_sentence(one) for one in self.conditions]
        parts += [f"missing: {text}" for text in self.missing]
        if self.word == "undecided":
            parts += _advice(self.conditions)
        return "; ".join([*parts, *self.notes])


def _strength(effect: Effect) -> float:
    """Return the margin in units of half the interval; of the value alone where there is none."""
    if effect.interval is None:
        return effect.margin / max(abs(effect.value), abs(effect.threshold), 1e-12)
    half = (effect.interval[1] - effect.interval[0]) / 2
    return effect.margin / max(half, 1e-12)


def _shared_by(several: Sequence[object]) -> float:
    """Return the level of each interval where one of several is enough."""
    return 1 - (1 - LEVEL) / max(len(several), 1)


def _sentence(condition: Sequence[Effect]) -> str:
    """Say the effects of a condition; of those of one number, the number once."""
    others = (e.demand() if e.name == before.name else e.sentence() for before, e in pairwise(condition))
    return " or ".join([condition[0].sentence(), *others])


def _advice(conditions: Sequence[tuple[Effect, ...]]) -> list[str]:
    """Say how many repetitions would decide every condition that is open."""
    open_ones = [one for one in conditions if not any(effect.speaks_for(_shared_by(one)) for effect in one)]
    if not open_ones:
        return []
    effects = [effect for one in open_ones for effect in one]
    unit, here = effects[0].unit, min(effect.n for effect in effects)
    needs = [_needed(one, _shared_by(conditions)) for one in open_ones]
    known = [need for need in needs if need is not None]
    if len(known) < len(needs):
        return [
            f"to decide: more than {_MOST_NEEDED:,} {unit}, an estimate lies close to its threshold (there are {here})"
        ]
    few = "at least" if any(effect.interval is None for effect in effects) else "about"
    return [f"to decide: {few} {max(known)} {unit} (there are {here})"]


def _needed(condition: Sequence[Effect], against: float) -> int | None:
    """Return how many repetitions would decide a condition: for it by one effect, or against it, at that level, by all."""
    ways = [effect.needed_for(_shared_by(condition)) for effect in condition]
    contradicting = [need for effect in condition if (need := effect.needed_against(against)) is not None]
    if len(contradicting) == len(condition):
        ways.append(max(contradicting))
    return min((way for way in ways if way is not None), default=None)


@dataclass(frozen=True)
class Verdict:
    """One line of the page; the attributes are the keys of ``claims.json``.

    Attributes:
        id: ``C1`` .. ``C18``.
        claim: in words.
        verdict: at this scale.
        scale: what the numbers are of.
        n: repetitions behind the headline; None where nothing could be judged.
        value: of the headline effect.
        low: end of its 95 % interval, None where there is none.
        high: likewise.
        effect: what the headline is.
        why: every effect with its threshold, what is missing, what would decide.
        published: evidence for the claim in its publication.
        command: makes the results that the verdict is about, or would.
        source: results file, relative to the studies folder; empty where there is none.
    """

    id: str
    claim: str
    verdict: Word
    scale: str = ""
    n: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    effect: str = ""
    why: str = ""
    published: str = ""
    command: str = ""
    source: str = ""


def with_ends(value: float, ends: Ends) -> str:
    """Return a number with its 95 % interval."""
    low, high = ends(LEVEL)
    known = math.isfinite(low) and math.isfinite(high)
    return f"{short(value)} [{short(low)}, {short(high)}]" if known else f"{short(value)} no interval"


def short(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}"
