"""The rule: which effects make which word."""

import math

import numpy as np
import pytest
from scipy import stats

from latentlab.claims.intervals import difference_ends, exponential, mean_ends, replicate_ends
from latentlab.claims.ratios import paired_ratio, ratio
from latentlab.claims.verdict import Effect, Judgement, Side
from latentlab.errors import UserError


def effect(
    value: float, half: float, *, n: int = 10, side: Side = "above", least: int = 3, refuted_at: float | None = None
) -> Effect:
    """An effect against 0 whose interval of level 0.95 is value +- half, wider by normal quantiles at higher levels."""

    def ends(level: float) -> tuple[float, float]:
        wide = half * float(stats.norm.ppf((1 + level) / 2) / stats.norm.ppf(0.975)) if half else 0.0
        return value - wide, value + wide

    return Effect("difference", value, ends, n, "seeds", least, 0.0, side, "any", refuted_at)


def word(*conditions: tuple[Effect, ...], missing: tuple[str, ...] = ()) -> str:
    return Judgement(conditions, "", "", "", missing=missing).word


FOR, AGAINST, OPEN = effect(2, 1), effect(-2, 1), effect(0.5, 1)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([(FOR,)], "confirmed"),
        ([(AGAINST,)], "refuted"),
        ([(OPEN,)], "undecided"),
        ([(effect(-2, 1, side="below"),)], "confirmed"),
        ([(effect(2, 1, side="below"),)], "refuted"),
        ([(effect(2, 1, n=2),)], "undecided"),  # too few, however clear
        ([(effect(-2, 1, n=2),)], "undecided"),
        ([(effect(1, 1),)], "undecided"),  # the interval touches the threshold
        ([(FOR,), (FOR,)], "confirmed"),
        ([(FOR,), (OPEN,)], "undecided"),
        ([(FOR,), (AGAINST,)], "refuted"),
        ([(FOR, AGAINST)], "confirmed"),  # one of the alternatives is enough
        ([(AGAINST, OPEN)], "undecided"),
        ([(AGAINST, AGAINST)], "refuted"),
        ([], "undecided"),
    ],
)
def test_rule(conditions: list[tuple[Effect, ...]], expected: str) -> None:
    assert word(*conditions) == expected


def test_one_of_many_shares_the_error() -> None:
    """Against by 2.1 standard errors: enough for one condition (1.96), not for four (2.50); likewise for alternatives."""
    against, speaking = effect(-2.1, 1.96), effect(2.1, 1.96)
    assert word((against,)) == "refuted" and word(*[(against,)] * 4) == "undecided"
    assert word((speaking,)) == "confirmed" and word((speaking, speaking)) == "undecided"
    assert word(*[(speaking,)] * 4) == "confirmed"  # where all must hold, each at its own level


def differs(value: float, half: float) -> tuple[Effect, Effect]:
    """A condition that something differs from 0, refuted within -3..3."""
    return effect(value, half, side="below", refuted_at=-3), effect(value, half, refuted_at=3)


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (4, 3, "confirmed"),
        (-4, 3, "confirmed"),
        (0, 2, "refuted"),
        (0, 4, "undecided"),
        (1, 2.5, "undecided"),  # from -1.5 to 3.5
        (4, 3.9, "undecided"),  # of two alternatives each needs 97.5 %
        (2, 0.5, "confirmed"),  # small, and certainly there
    ],
)
def test_what_may_lie_on_either_side_is_refuted_by_a_small_value(value: float, half: float, expected: str) -> None:
    assert word(differs(value, half)) == expected
    assert word((effect(value, half), effect(value, half, side="below"))) != "refuted"


def test_sentences_of_one_number_say_it_once() -> None:
    why = Judgement([differs(0, 2)], "", "", "").why()
    told = "difference: 0 [-2, 2] (n=10, seeds) against below 0, refuted above -3 (any) or against above 0, refuted below 3 (any)"
    assert why == told


def test_missing_parts_allow_refuting_but_not_confirming() -> None:
    assert word((FOR,), missing=("half",)) == "undecided"
    assert word((AGAINST,), missing=("half",)) == "refuted"


def test_headline_is_the_weakest_condition_by_its_best_alternative() -> None:
    judgement = Judgement([(effect(5, 1),), (effect(-3, 1), effect(1, 1))], "", "", "")
    assert judgement.headline is not None and judgement.headline.value == 1


def test_how_many_would_decide() -> None:
    """Half the interval shrinks as 1 / sqrt(n): 0.5 +- 1 at n = 10 needs 40."""
    assert effect(0.5, 1).needed_for() == 40 and effect(-0.5, 1).needed_against() == 40
    assert effect(0.5, 1).needed_against() is None and effect(-0.5, 1).needed_for() is None
    assert effect(2, 1, n=2, least=12).needed_for() == 12
    assert effect(0, 1).needed_for() is None and effect(0.01, 1).needed_for() is None
    assert effect(0.5, 1, refuted_at=1).needed_against() == 40 and effect(0.5, 1, refuted_at=1).needed_for() == 40
    one_seed = Effect("r", 1.3, mean_ends([1.3]), 1, "seeds", 3, 1.0, "above", "any")
    assert one_seed.needed_for() == one_seed.needed_against() == 3 and one_seed.interval is None
    why = Judgement([(one_seed,)], "", "", "").why()
    assert "at least 3 seeds (there are 1)" in why and "no interval" in why
    assert "more than 1,000 seeds" in Judgement([(effect(0, 1),)], "", "", "").why()
    assert "to decide" not in Judgement([(FOR,)], "", "", "").why()
    beside = Judgement([(FOR, effect(0.01, 1)), (effect(0.9, 1), effect(0.01, 1))], "", "", "")
    assert (
        "to decide: about 17 seeds" in beside.why()
    )  # 10 (2.2414 / 1.96 / 0.9)^2; what holds and slower ones do not count
    clear = effect(
        -1.05, 1
    )  # at 95 %, but one of two conditions that could refute needs 97.5 %: n (2.2414 / 1.96 / 1.05)^2 = 12
    both = Judgement([(clear,), (FOR,)], "", "", "")
    assert both.word == "undecided" and "to decide: about 12 seeds (there are 10)" in both.why()
    either = Judgement(
        [differs(-1, 4)], "", "", ""
    )  # against: 10 (4 / 2)^2 below -3 and 10 (4 / 4)^2 above 3, both needed
    assert either.word == "undecided" and "to decide: about 40 seeds" in either.why()


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.95, 0.9875])
def test_student_and_welch_are_those_of_scipy(level: float) -> None:
    a, b = [1.0, 1.3, 0.8, 1.1], [2.0, 2.6, 1.7]
    assert mean_ends(a)(level) == pytest.approx(tuple(stats.ttest_1samp(a, 0).confidence_interval(level)))
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
    assert difference_ends(a, b)(level) == pytest.approx(tuple(welch))
    assert exponential(difference_ends(a, b))(level) == pytest.approx(tuple(np.exp(welch)))


def test_one_repetition_has_no_interval() -> None:
    assert mean_ends([3.0])(0.95) == (-math.inf, math.inf)
    assert difference_ends([1.0, 2.0], [3.0])(0.95) == (-math.inf, math.inf)
    assert exponential(mean_ends([3.0]))(0.95) == (-math.inf, math.inf)
    assert difference_ends([1.0, 1.0], [3.0, 3.0])(0.95) == (-2.0, -2.0)  # no spread at all


def test_replicates_that_are_mostly_undefined_give_no_interval() -> None:
    values = np.arange(101.0)
    assert replicate_ends(values)(0.9) == pytest.approx((5, 95))
    assert replicate_ends(np.where(values < 60, np.nan, values))(0.9) == (-math.inf, math.inf)


def test_ratios_are_geometric_and_their_direction_does_not_matter() -> None:
    first, second = [10.0, 12.0, 11.0], [20.0, 23.0, 22.0]
    there, back = ratio("a", first, second), ratio("b", second, first)
    assert there.value == pytest.approx(1 / back.value) == pytest.approx((1320 / 10120) ** (1 / 3))
    low, high = there.interval or (0, 0)
    assert back.interval == pytest.approx((1 / high, 1 / low))
    assert paired_ratio("c", [2.0, 8.0]).value == pytest.approx(4)
    with pytest.raises(UserError, match="only positive"):
        ratio("a", [0.0, 1.0], [1.0, 1.0])
