"""C1, C6, C9, C15, C17 and C18 from made-up results: confirmed, refuted, too noisy, too few, missing; and the committed C9."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from latentlab.measurement import Estimate, Measurement

from .made_up_results import NOISE, WILD, around, cells, comparison, entrant, grid, judged, write

STUDIES = Path(__file__).parents[3] / "studies"

# --- C9 ---------------------------------------------------------------------------------------------------------------


def order(folder: Path, mind: float, sit: float, dit: float, noise: Sequence[float] = NOISE) -> Path:
    values = {"MIND": ("mind", mind), "SiT": ("sit", sit), "DiT": ("dit", dit)}
    comparison(folder / "generators", *(entrant(name, kind, around(v, noise)) for name, (kind, v) in values.items()))
    return folder


@pytest.mark.parametrize(
    ("distances", "noise", "verdict"),
    [
        ((22, 33, 43), NOISE, "confirmed"),
        ((40, 33, 43), NOISE, "refuted"),
        ((22, 43, 33), NOISE, "refuted"),
        ((22, 33, 33), NOISE, "undecided"),
        ((22, 33, 43), WILD, "undecided"),
        ((22, 33, 43), (0.0,), "undecided"),
        ((80, 33, 43), (0.0,), "undecided"),
    ],
)
def test_order(distances: tuple[float, float, float], noise: tuple[float, ...], verdict: str, tmp_path: Path) -> None:
    found = judged("C9", order(tmp_path, *distances, noise=noise))
    assert found.verdict == verdict, found.why
    assert ("over images" in found.why) == (len(noise) == 1)


@pytest.mark.parametrize(
    ("ends", "early", "steps", "verdict", "shown"),
    [
        ((40, 33, 43), 36, (1500, 2000, 2000), "refuted", 40 / 36),  # SiT is better with fewer epochs than MIND's too
        (
            (40, 33, 43),
            50,
            (1500, 2000, 2000),
            "undecided",
            40 / 50,
        ),  # with fewer it is not, and with as many nobody knows
        ((40, 33, 43), 50, (1990, 2000, 2000), "refuted", 40 / 33),  # as good as equal
        ((22, 33, 43), 36, (1500, 2000, 2000), "confirmed", 22 / 33),  # MIND is better although it had fewer
    ],
)
def test_order_at_other_epochs(
    ends: tuple[float, ...], early: float, steps: tuple[int, ...], verdict: str, shown: float, tmp_path: Path
) -> None:
    made = [
        entrant(label, label.lower(), around(end), steps=number)
        for label, end, number in zip(("MIND", "SiT", "DiT"), ends, steps, strict=True)
    ]
    for run, distance in zip(made[1]["runs"], around(early), strict=True):
        end = run["guidance"][0]["quality"]
        score = {**end["fd_efficientnet_lite0"], "value": distance}
        run["curve"] = [
            {"share": 0.5, "step": 1000, "error": None, "quality": {"fd_efficientnet_lite0": score}},
            {"share": 1.0, "step": 2000, "error": None, "quality": end},
        ]
    comparison(tmp_path / "generators", *made)
    found = judged("C9", tmp_path)
    assert found.verdict == verdict, found.why
    assert f"{shown:.3g} [" in found.why


def test_order_without_one_of_them(tmp_path: Path) -> None:
    assert judged("C9", tmp_path).command == f"latentlab study generators --seeds 3 --out {tmp_path}/generators"
    comparison(tmp_path / "generators", entrant("MIND", "mind", [1, 2]), entrant("SiT", "sit", [1, 2]))
    found = judged("C9", tmp_path)
    assert (
        found.verdict == "undecided" and found.why == "missing: generators/results.json has no unguided distance of DiT"
    )


def test_committed_order() -> None:
    """Typed from studies/generators/table.md: MIND 2.612, SiT 1.38, DiT 3.372, means of three trainings."""
    found = judged("C9", STUDIES)
    assert found.verdict == "refuted" and found.n == 3
    assert found.value == pytest.approx(2.612 / 1.99, rel=2e-3)  # SiT after 777 steps, MIND after its 1,200
    assert "of MIND after 1,200 steps over that of SiT after 777" in found.why
    assert "distance of SiT over that of DiT, unguided: 0.41" in found.why  # 1,554 and 1,552 steps
    assert "ibq 0.0917, kl 0.092: generators of different tokenizers start level" in found.why


# --- C18 --------------------------------------------------------------------------------------------------------------


def schedules(folder: Path, noise: Sequence[float] = NOISE, **distances: float) -> Path:
    entrants = [
        entrant(name, "emigm", around(value, noise), train={"model.schedule": name})
        for name, value in distances.items()
    ]
    comparison(folder / "masking_schedules", *entrants)
    return folder


@pytest.mark.parametrize(
    ("distances", "noise", "verdict"),
    [
        ({"exp": 11, "linear": 25, "cosine": 13}, NOISE, "confirmed"),
        ({"exp": 11, "linear": 25, "cosine": 9}, NOISE, "refuted"),
        ({"exp": 11, "linear": 25, "cosine": 11}, NOISE, "undecided"),
        ({"exp": 11, "linear": 25, "cosine": 13}, (0.0,), "undecided"),
    ],
)
def test_schedules(distances: dict[str, float], noise: tuple[float, ...], verdict: str, tmp_path: Path) -> None:
    assert judged("C18", schedules(tmp_path, noise, **distances)).verdict == verdict


def test_schedules_missing_or_weighted_otherwise(tmp_path: Path) -> None:
    assert "--config" in judged("C18", tmp_path).command
    schedules(tmp_path, exp=11, linear=25)
    assert "model.schedule=cosine" in judged("C18", tmp_path).why
    weighted = entrant("exp", "emigm", [1, 1, 1], train={"model.schedule": "exp", "model.weighting": "mdm"})
    comparison(tmp_path / "masking_schedules", weighted)
    assert "model.schedule=exp" in judged("C18", tmp_path).why


# --- C15 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("none", "part", "noise", "verdict"),
    [
        (40.0, 19.5, NOISE, "confirmed"),
        (40.0, 30.0, NOISE, "refuted"),
        (15.0, 19.5, NOISE, "undecided"),  # guidance itself costs: there is nothing to keep
        (40.0, 20.0, WILD, "undecided"),
        (40.0, 19.5, (0.0,), "undecided"),
    ],
)
def test_interval(none: float, part: float, noise: tuple[float, ...], verdict: str, tmp_path: Path) -> None:
    rows = {
        "not guided": cells(around(none, [0.0] * len(noise)), evaluations=50.0),
        "guided throughout": cells(around(20.0, [0.0] * len(noise)), evaluations=100.0),
        "guided in [0.2, 0.6]": cells(around(part, noise), evaluations=72.0),
    }
    grid(tmp_path / "guidance_interval", rows, "fashion32")
    found = judged("C15", tmp_path)
    assert found.verdict == verdict and "takes 0.72 times the evaluations" in found.why
    assert ("missing: a gain by guidance" in found.why) is (none < 20 or len(noise) < 3)


def test_interval_missing(tmp_path: Path) -> None:
    found = judged("C15", tmp_path)
    assert found.command.startswith(f"latentlab ablate {tmp_path}/guidance_interval/grid.yaml --seeds 3")
    grid(tmp_path / "guidance_interval", {"guided throughout": cells([20.0])}, "fashion32")
    assert "guided in [0.2, 0.6]" in judged("C15", tmp_path).why


def test_its_grid_has_the_rows_that_are_compared() -> None:
    yaml = pytest.importorskip("yaml")
    labels = [row["label"] for row in yaml.safe_load((STUDIES / "guidance_interval" / "grid.yaml").read_text())["rows"]]
    assert {"not guided", "guided throughout", "guided in [0.2, 0.6]"} <= set(labels)
    found = yaml.safe_load((STUDIES / "masking_schedules" / "comparison.yaml").read_text())["generators"]
    assert {"exp", "linear", "cosine"} <= {one["train"]["model"]["schedule"] for one in found}


# --- C17 --------------------------------------------------------------------------------------------------------------


def measured(name: str, value: float, n: int = 5000, **more: Any) -> dict[str, Any]:
    """As `latentlab evaluate` and `latentlab trajectories` write it."""
    return Measurement(
        name=name, variant="v", value=value, interval=None, direction="lower", unit="", n=n, parameters={}, **more
    ).to_dict()


def distilled(folder: Path, students: Sequence[float], other: float = 1.0, n: int = 5000, kinds: int = 2) -> Path:
    names = ["fd_efficientnet_lite0", "fd_fashion_classifier"][:kinds]
    write(folder / "distillation/reconstructions/results.json", {"measurements": [measured(k, 10.0) for k in names]})
    for i, value in enumerate(students):
        values = [measured(k, v, n) for k, v in zip(names, (value, value * other), strict=False)]
        write(
            folder / f"distillation/one_step-{i}/results.json",
            {"command": "latentlab evaluate", "measurements": values},
        )
    return folder


@pytest.mark.parametrize(
    ("students", "other", "verdict"),
    [
        (around(10.1), 1.0, "confirmed"),
        (around(10.1), 2.0, "refuted"),  # only on the features it was trained on
        (around(20.0), 1.0, "refuted"),
        (around(11.0), 1.0, "undecided"),
        (around(9.0, WILD), 1.0, "undecided"),
        ([9.9], 1.0, "undecided"),
    ],
)
def test_one_step(students: list[float], other: float, verdict: str, tmp_path: Path) -> None:
    assert judged("C17", distilled(tmp_path, students, other)).verdict == verdict


def test_one_step_missing(tmp_path: Path) -> None:
    assert "one_step*/results.json is not there" in judged("C17", tmp_path).why
    assert "at least 2" in judged("C17", distilled(tmp_path, [10.0], kinds=1)).why
    assert "unequal numbers" in judged("C17", distilled(tmp_path, [10.0], n=2000)).why


# --- C6 ---------------------------------------------------------------------------------------------------------------


def paths(folder: Path, values: Sequence[float], discrete: bool = False) -> Path:
    for i, value in enumerate(values):
        companions = {"correlation with irreducible variance": Estimate(value), "efficiency": Estimate(0.9)}
        found = [
            measured("straightness", 0.9, companions=companions),
            measured("viv", 1.0, details={"discrete": discrete}),
        ]
        write(folder / f"trajectories/g{i}/results.json", {"name": f"g{i}", "command": None, "measurements": found})
    return folder


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-0.9, -0.8, -0.95] * 4, "confirmed"),
        ([0.1, -0.1, 0.0] * 4, "refuted"),
        ([-0.9, 0.3, -0.9] * 4, "undecided"),
        ([-0.9] * 3, "undecided"),
    ],
)
def test_short_where_ambiguous(values: list[float], verdict: str, tmp_path: Path) -> None:
    found = judged("C6", paths(tmp_path, values))
    assert found.verdict == verdict and found.n == len(values)
    assert "add up to a constant" in found.why and "no value" not in found.why


def test_short_where_ambiguous_missing(tmp_path: Path) -> None:
    found = judged("C6", tmp_path)
    assert found.verdict == "undecided" and "no trajectories/NAME/results.json" in found.why
    assert judged("C6", paths(tmp_path, [-0.9] * 12, discrete=True)).why == found.why  # no Gaussians


def test_paths_over_entries_of_a_codebook_are_named(tmp_path: Path) -> None:
    paths(tmp_path, [-0.9] * 2, discrete=True)
    (tmp_path / "trajectories/g0").rename(tmp_path / "trajectories/codes")
    found = judged("C6", paths(tmp_path, [-0.9] * 12))
    assert found.verdict == "confirmed" and found.n == 12
    assert "; no value (entries of a codebook have none): codes" in found.why


# --- C1 ---------------------------------------------------------------------------------------------------------------


def bottlenecks(
    folder: Path,
    continuous: Any,
    discrete: Any,
    images: int = 8,
    place: str = "",
    heldout: Any = (0.3, 0.2, 0.4),
    free: float | None = 0.05,
    **changed: Any,
) -> Path:
    """Write what `latentlab collapse` writes.

    Args:
        folder: of studies.
        continuous: index of latents and the ends of its interval; None without them.
        discrete: of ids, likewise.
        images: number of them.
        place: below the study's folder.
        heldout: like ``discrete``, on held-out views; without ends no interval.
        free: index of latents without normalisation; None where there are no such runs.
        changed: entries of both summaries.
    """
    summaries = []
    for path, found in (("continuous", continuous), ("discrete", discrete)):
        if found is not None:
            index = {"value": found[0], "interval": list(found[1:]) if images > 1 else None}
            summaries.append({
                "path": path, "tokenizer": {"continuous": "kl", "discrete": "ibq"}[path], "setting": "6-D, circles", "dims": 6,
                "sphere": "pairs", "images": images, "seeds": 2, "unit": "images" if images > 1 else "seeds",
                "index": index, "index_heldout_views": {"value": heldout[0], "interval": list(heldout[1:]) or None}, **changed,
            })  # fmt: skip
    content = {"command": "latentlab collapse", "perceptual": "st_lpips", "data": {"name": "fashion:test"}}
    runs = [] if continuous is None else bottleneck_runs(continuous[0], images, free)
    write(folder / "collapse" / place / "results.json", {**content, "summaries": summaries, "runs": runs})
    return folder


def bottleneck_runs(index: float, images: int, free: float | None) -> list[dict[str, Any]]:
    """Return two seeds of every image on circles and, where ``free`` is one, of that index without normalisation."""
    return [
        {
            "path": "continuous", "tokenizer": "kl", "dims": 6, "sphere": sphere, "subject": image, "seed": seed,
            "curves": {"fitted": {"to_reconstruction": [9.0, 2 * value + 0.01 * image + 0.1 * seed]}},
            "references": {"other_view": 2.0},
        }
        for sphere, value in (("pairs", index), ("none", free))
        for image in range(images)
        for seed in (0, 1)
        if value is not None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("continuous", "discrete", "images", "verdict"),
    [
        ((0.9, 0.8, 1.0), (0.1, 0.0, 0.2), 8, "confirmed"),
        ((0.2, 0.1, 0.3), (0.1, 0.0, 0.2), 8, "refuted"),
        ((0.9, 0.8, 1.0), (0.8, 0.7, 0.9), 8, "refuted"),
        ((0.6, 0.4, 0.8), (0.1, 0.0, 0.2), 8, "undecided"),
        ((0.9, 0.8, 1.0), (0.1, 0.0, 0.2), 3, "undecided"),
        ((0.9, 0.8, 1.0), (0.1, 0.0, 0.2), 1, "undecided"),
    ],
)
def test_collapse(continuous: Any, discrete: Any, images: int, verdict: str, tmp_path: Path) -> None:
    found = judged("C1", bottlenecks(tmp_path, continuous, discrete, images))
    assert found.verdict == verdict and "on held-out views: 0.3 [0.2, 0.4] (n=" in found.why


COLLAPSE, NONE = (0.9, 0.8, 1.0), (0.1, 0.0, 0.2)


@pytest.mark.parametrize(
    ("heldout", "free", "verdict"),
    [
        ((0.3, 0.2, 0.4), 0.05, "confirmed"),
        ((0.8, 0.7, 0.9), 0.05, "refuted"),  # ids that were only memorised
        ((0.5, 0.4, 0.6), 0.05, "undecided"),
        ((0.3,), 0.05, "undecided"),
        ((0.3, 0.2, 0.4), 0.95, "refuted"),  # without circles it is worse
        ((0.3, 0.2, 0.4), None, "undecided"),
    ],
)
def test_collapse_is_of_held_out_views_and_by_the_circles(
    heldout: tuple[float, ...], free: float | None, verdict: str, tmp_path: Path
) -> None:
    found = judged("C1", bottlenecks(tmp_path, COLLAPSE, NONE, heldout=heldout, free=free))
    assert found.verdict == verdict, found.why
    told = "missing: an interval of the collapse index of the ids of ibq on held-out views"
    assert (told in found.why) == (len(heldout) == 1)
    told = "missing: runs of kl on circles and without normalisation, on the same images"
    assert (told in found.why) == (free is None)


def test_what_circles_cost_is_the_mean_over_images_of_photographs(tmp_path: Path) -> None:
    """Typed from studies/collapse/README.md: by photograph the circles add 0.07 [-0.004, 0.14]."""
    circles, free = (
        json.loads((STUDIES / "collapse" / p / "results.json").read_text()) for p in ("taef2", "taef2_none")
    )
    ids = {**circles["summaries"][0], "path": "discrete", "tokenizer": "ids"}
    runs = [*circles["runs"], *free["runs"]]
    write(tmp_path / "collapse/results.json", {**circles, "summaries": [*circles["summaries"], ids], "runs": runs})
    told = re.search(
        r"on circles less that without normalisation, by image: (\S+) \[(\S+), (\S+)\]", judged("C1", tmp_path).why
    )
    assert told is not None
    assert [float(one) for one in told.groups()] == pytest.approx([0.07, -0.004, 0.14], abs=0.005)


def test_committed_collapse() -> None:
    """Typed from studies/collapse/README.md: 0.023 [0.013, 0.034]; ids on other views 0.48 [0.35, 0.64]."""
    found = judged("C1", STUDIES)
    assert found.verdict == "refuted" and found.n == 8 and found.value == pytest.approx(0.023, abs=5e-4)
    assert "collapse index of the ids of ibq on held-out views: 0.479 [0.346, 0.635]" in found.why
    assert "missing" not in found.why


def test_none_of_several_tokenizers_is_picked(tmp_path: Path) -> None:
    bottlenecks(tmp_path, COLLAPSE, NONE)
    file = tmp_path / "collapse/results.json"
    content = json.loads(file.read_text())
    write(file, {**content, "summaries": [*content["summaries"], {**content["summaries"][0], "tokenizer": "ae"}]})
    found = judged("C1", tmp_path)
    assert (
        found.verdict == "undecided"
        and "has no one continuous tokenizer to judge among kl, ae at 6 numbers" in found.why
    )


def test_collapse_of_other_images_is_told_and_decides_nothing(tmp_path: Path) -> None:
    bottlenecks(tmp_path, (0.2, 0.1, 0.3), (0.1, 0.0, 0.2))
    alone = judged("C1", tmp_path)
    bottlenecks(tmp_path, (1.25, 1.1, 1.4), None, place="taef2", tokenizer="taef2")
    found = judged("C1", tmp_path)
    assert (found.verdict, found.value, found.n) == (alone.verdict, alone.value, alone.n) == ("refuted", 0.2, 8)
    told = "the index of taef2, continuous, 6-D, circles, is 1.25 [1.1, 1.4] (collapse/taef2/results.json)"
    assert told in found.why and told not in alone.why


def test_collapse_missing(tmp_path: Path) -> None:
    assert judged("C1", tmp_path).command.startswith("latentlab collapse --images 8 --seeds 3")
    assert "no discrete tokenizer" in judged("C1", bottlenecks(tmp_path, (0.9, 0.8, 1.0), None)).why
    other = bottlenecks(tmp_path, (0.9, 0.8, 1.0), (0.1, 0.0, 0.2), dims=8)
    assert "no continuous tokenizer at 6 numbers" in judged("C1", other).why
