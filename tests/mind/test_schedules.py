"""Times of the sampler against values worked out by hand for n=4, and what rounding does to 250 steps."""

import pytest
import torch

from latentlab.errors import UserError
from mind.schedules import SCHEDULES, timesteps

FOUR_STEPS = {
    "linear": [0.25075, 0.5005, 0.75025],
    "cosine": [0.152988, 0.506156, 0.855728],
    "shifted_cosine": [0.023405, 0.256194, 0.732270],
    "mid_dense": [0.322298, 0.5005, 0.678702],
    "late_dense": [0.378535, 0.681678, 0.898570],
    "early_dense": [0.102430, 0.319322, 0.622465],
    "logsnr_uniform": [0.090971, 0.909132, 0.999001],
}


@pytest.mark.parametrize("name", FOUR_STEPS)
def test_four_steps(name: str) -> None:
    times = timesteps(name, 4)
    assert times.dtype == torch.float64
    assert times.tolist() == pytest.approx([0.001, *FOUR_STEPS[name], 1.0], abs=1e-6)


def test_every_schedule_has_hand_values() -> None:
    assert set(FOUR_STEPS) == set(SCHEDULES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_250_steps_repeat_only_the_cut_beginning_of_the_cosines(dtype: torch.dtype) -> None:
    repeats = {name: int((timesteps(name, 250, dtype=dtype).diff() == 0).sum()) for name in SCHEDULES}
    assert repeats == {name: {"cosine": 3, "shifted_cosine": 26}.get(name, 0) for name in SCHEDULES}


@pytest.mark.parametrize(("name", "repeats"), [("linear", 20), ("cosine", 99), ("shifted_cosine", 103)])
def test_bfloat16_repeats_times(name: str, repeats: int) -> None:
    assert int((timesteps(name, 250, dtype=torch.bfloat16).diff() == 0).sum()) == repeats


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEDULES)
def test_times_never_go_back_and_end_at_the_ends(name: str, dtype: torch.dtype) -> None:
    for steps in (1, 2, 7, 50, 1000):
        times = timesteps(name, steps, start=0.25, end=0.75, dtype=dtype)
        assert len(times) == steps + 1
        assert (times.diff() >= 0).all()
        assert float(times[0]) == pytest.approx(0.25, rel=1e-6)
        assert float(times[-1]) == pytest.approx(0.75, rel=1e-6)


def test_suffixes_in_either_order() -> None:
    expected = timesteps("late_dense", 5, start=0.0, end=0.995)
    assert torch.equal(timesteps("late_dense_start0_end0995", 5), expected)
    assert torch.equal(timesteps("late_dense_end0995_start0", 5), expected)
    assert float(timesteps("cosine_start1e4", 250)[0]) == 1e-4


def test_suffixes_as_the_released_code_reads_them() -> None:
    expected = timesteps("late_dense", 5, start=0.0, end=0.995)
    assert torch.equal(timesteps("late_dense_end0995_start0", 5, strict_released_bugs=True), expected)
    mistaken = timesteps("late_dense_start0_end0995", 5, strict_released_bugs=True)
    assert torch.equal(mistaken, timesteps("linear", 5, start=0.001, end=0.995))
    assert torch.equal(timesteps("no such thing", 5, strict_released_bugs=True), timesteps("linear", 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cosin", "steps": 4}, "unknown schedule 'cosin'. Did you mean cosine"),
        ({"name": "linear_start0_start1e4", "steps": 4}, "sets one end twice"),
        ({"name": "linear_start0_start0", "steps": 4}, "sets one end twice"),
        ({"name": "_end0995", "steps": 4}, "unknown schedule"),
        ({"name": "linear", "steps": 0}, "at least 1 step"),
        ({"name": "linear", "steps": 4, "start": 0.5, "end": 0.5}, "0 <= start < end <= 1"),
        ({"name": "linear", "steps": 4, "end": 1.5}, "0 <= start < end <= 1"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        timesteps(**arguments)  # type: ignore[arg-type]
