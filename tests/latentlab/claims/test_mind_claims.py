"""C10 to C14 from made-up grids: confirmed, refuted, too noisy, one seed, missing rows; and the committed ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from latentlab.errors import UserError

from .made_up_results import NOISE, WILD, around, cells, failed, grid, judged, write

STUDIES = Path(__file__).parents[3] / "studies"

ROWS: dict[str, tuple[str, str, dict[str, float]]] = {
    "C10": ("hypersphere", "", {
        "A sphere, xavier": 52, "B no sphere, xavier": 281, "C no sphere, normal": 195, "D no sphere, normal, more noise": 124,
    }),
    "C11": ("embedding-noise", "", {
        "d=8, g=2, K1=0.6": 125, "d=8, g=2, K1=1.0": 206, "d=16, g=4, K1=0.6": 30, "d=32, g=8, K1=0.6": 39,
        "d=64, g=16, K1=0.6": 50, "d=64, g=16, K1=0.8": 65, "d=128, g=32, K1=1.0": 80,
    }),
    "C12": ("residual", "", {"d=16, without": 40, "d=16, with": 30, "d=64, without": 90, "d=64, with": 40}),
    "C13": ("guidance-space", "", {
        f"{setting}, {space}": value
        for setting in ("d=16, K1=0.6", "d=32, K1=0.6", "d=64, K1=0.6", "d=64, K1=0.8", "d=128, K1=1.0")
        for space, value in (("logits", 40), ("feature", 50))
    }),
    "C14": ("stages", "fashion32", {
        "no stages": 20, "greedy 0.1": 15, "soft 0.3, greedy 0.1": 30, "guided, no stages": 10,
        "guided, soft 0.1, greedy 0.1": 5,
    }),
}  # fmt: skip
"""Claim -> grid, weights and distances by row, as the claim has them."""


def made(folder: Path, identity: str, noise: Sequence[float] = NOISE, **changed: float) -> Path:
    """Write the grid of a claim; seeds of all rows differ alike only where they are paired."""
    name, weights, rows = ROWS[identity]
    values: Mapping[str, float] = {**rows, **changed}
    turned = [(*noise[i % len(noise) :], *noise[: i % len(noise)]) for i in range(len(values))]
    written = {label: cells(around(value, turn)) for (label, value), turn in zip(values.items(), turned, strict=True)}
    if identity == "C14":
        for label, precision in (("greedy 0.1", 0.43), ("soft 0.3, greedy 0.1", 0.48)):
            for i, one in enumerate(written[label]):
                one["precision"] = {"value": precision + 0.001 * i, "interval": None, "n": 500}
    grid(folder / "mind_ablations" / name, written, weights or None)
    return folder


@pytest.mark.parametrize("identity", ROWS)
def test_confirmed(identity: str, tmp_path: Path) -> None:
    found = judged(identity, made(tmp_path, identity))
    assert found.verdict == "confirmed", found.why
    assert found.n == 3 and found.low is not None and found.command == "latentlab ablate made-up"
    assert found.source == f"mind_ablations/{ROWS[identity][0]}/results.json"


REFUTED: dict[str, list[dict[str, float]]] = {
    "C10": [{"B no sphere, xavier": 52}],
    "C11": [{"d=32, g=8, K1=0.6": 20}, {"d=64, g=16, K1=0.8": 30}],
    "C12": [{"d=16, with": 50}, {"d=64, with": 85}],
    "C13": [{f"d={d}, K1=0.6, logits": 90 for d in (16, 32, 64)}],
    "C14": [{"greedy 0.1": 40}, {"guided, soft 0.1, greedy 0.1": 20}, {"soft 0.3, greedy 0.1": 10}],
}


@pytest.mark.parametrize(("identity", "changed"), [(name, one) for name, many in REFUTED.items() for one in many])
def test_refuted(identity: str, changed: dict[str, float], tmp_path: Path) -> None:
    found = judged(identity, made(tmp_path, identity, **changed))
    assert found.verdict == "refuted", found.why


@pytest.mark.parametrize("identity", ROWS)
@pytest.mark.parametrize("noise", [WILD, (0.0,), (-0.01, 0.01)], ids=["noisy", "one seed", "two seeds"])
def test_undecided(identity: str, noise: tuple[float, ...], tmp_path: Path) -> None:
    found = judged(identity, made(tmp_path, identity, noise))
    assert found.verdict == "undecided" and found.value is not None
    assert "to decide: " in found.why
    assert (found.low is None) == (len(noise) == 1)


@pytest.mark.parametrize("identity", ROWS)
def test_missing(identity: str, tmp_path: Path) -> None:
    name, weights, rows = ROWS[identity]
    found = judged(identity, tmp_path)
    assert found.verdict == "undecided" and found.value is found.n is None
    assert found.why == f"missing: mind_ablations/{name}/results.json is not there"
    assert found.command == f"latentlab ablate {name} --seeds 3 --out {tmp_path}/mind_ablations/{name}"
    first = next(iter(rows))  # a row that failed with every seed
    written = {label: [failed(0)] if label == first else cells([value]) for label, value in rows.items()}
    grid(tmp_path / "mind_ablations" / name, written, weights or None)
    found = judged(identity, tmp_path)
    assert found.verdict == "undecided" and f"no numbers in row '{first}'" in found.why


def test_sphere_is_needed_also_where_only_norms_blow_up(tmp_path: Path) -> None:
    """C10: rows of N(0,1) are as good as on the sphere but twice as long as they began; a failed seed is left out."""
    small = "B no sphere, xavier"
    distances = {label: ROWS["C10"][2][label] if label == small else 52 for label in ROWS["C10"][2]}
    for norm, verdict in ((8.0, "confirmed"), (4.3, "refuted")):
        rows = {
            label: cells(around(one), norm=2.0 if label.startswith("A") else norm) for label, one in distances.items()
        }
        grid(tmp_path / "mind_ablations" / "hypersphere", {label: [*one, failed(3)] for label, one in rows.items()})
        found = judged("C10", tmp_path)
        assert found.verdict == verdict and found.n == 3 and "published: 2, 0.04, 9.68, 13.66" in found.why
    assert f"latent norm of {small}" not in found.why


def test_factors_of_the_branch_are_of_pairs_with_one_seed(tmp_path: Path) -> None:
    """C12: models of four seeds differ by factors, the branch gains 25 % with each at d=16 and 50 % at d=64; two failed."""
    models = (10.0, 40.0, 20.0, 80.0)
    factors = {"d=16, without": 1.0, "d=16, with": 0.75, "d=64, without": 1.0, "d=64, with": 0.5}
    rows = {label: cells([factor * one for one in models]) for label, factor in factors.items()}
    rows["d=16, with"][0], rows["d=64, without"][3] = failed(0), failed(3)
    grid(tmp_path / "mind_ablations" / "residual", rows)
    why = judged("C12", tmp_path).why
    assert "factor of the branch at d=64 over its factor at d=16: 0.667 [0.667, 0.667] (n=3, seeds)" in why


def test_factors_of_the_branch_without_a_common_seed_are_missing(tmp_path: Path) -> None:
    rows = {label: cells(around(value)) for label, value in ROWS["C12"][2].items()}
    rows["d=64, with"] = [{**one, "seed": 3 + i} for i, one in enumerate(rows["d=64, with"])]
    grid(tmp_path / "mind_ablations" / "residual", rows)
    found = judged("C12", tmp_path)
    told = "missing: factor of the branch at d=64 over its factor at d=16: no seed has both rows of d=64"
    assert found.verdict == "undecided" and told in found.why


def test_stages_without_precision_can_be_refuted_but_not_confirmed(tmp_path: Path) -> None:
    name, weights, rows = ROWS["C14"]
    for changed, verdict in (({}, "undecided"), ({"greedy 0.1": 40}, "refuted")):
        grid(tmp_path / "mind_ablations" / name, {k: cells(around(v)) for k, v in {**rows, **changed}.items()}, weights)
        found = judged("C14", tmp_path)
        assert found.verdict == verdict and "holds no precision" in found.why


def test_guidance_space_is_paired_by_seed(tmp_path: Path) -> None:
    """C13: models of different seeds differ by a factor, features are 10 % worse with each: the pairs agree exactly."""
    rows = {
        label: cells([value * (1.1 if label.endswith("feature") else 1.0) for value in (20, 40, 80)])
        for label in ROWS["C13"][2]
    }
    grid(tmp_path / "mind_ablations" / "guidance-space", rows)
    found = judged("C13", tmp_path)
    assert found.verdict == "confirmed" and found.value == pytest.approx(1.1) == pytest.approx(found.low)
    assert "excepted" not in found.why
    rows |= {f"d=8, K1=0.6, {space}": cells([value] * 3) for space, value in (("logits", 50), ("feature", 40))}
    grid(tmp_path / "mind_ablations" / "guidance-space", rows)
    also = judged("C13", tmp_path)
    assert also.value == found.value and "d=8, K1=0.6, excepted: 0.8" in also.why


def test_committed_hypersphere() -> None:
    """Typed from studies/mind_ablations/hypersphere/table.md: 102.4 / 114.8, 133 / 114.8, 118.4 / 114.8; norms."""
    found = judged("C10", STUDIES)
    assert found.verdict == "undecided" and found.n == 1 and found.low is None
    assert found.value == pytest.approx(102.3566 / 114.8244, rel=1e-5)
    for number in ("0.891", "1.16", "4.29", "1.03", "4.23"):
        assert f": {number} no interval" in found.why


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable JSON"),
        ([], "valid dictionary"),
        ({"rows": []}, "base: Field required"),
    ],
)
def test_damaged(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mind_ablations" / "residual" / "results.json"
    write(path, content)
    if isinstance(content, str):
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        judged("C12", tmp_path)


@pytest.mark.parametrize("wrong", ["NaN", '"40"', "true", "Infinity", "-1", "0"])
@pytest.mark.parametrize("claim", ["C12", "C13", "C14"])
def test_what_is_no_distance_is_damage(claim: str, wrong: str, tmp_path: Path) -> None:
    name, _, rows = ROWS[claim]
    path = made(tmp_path, claim) / "mind_ablations" / name / "results.json"
    number = str(around(next(iter(rows.values())))[0])
    path.write_text(path.read_text().replace(number, wrong, 1))
    with pytest.raises(UserError, match=rf"{name}/results.json.*distance.value"):
        judged(claim, tmp_path)
