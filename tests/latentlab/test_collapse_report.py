"""The verdict in each direction, from runs with numbers that are chosen."""

from typing import Any

import numpy as np
import pytest

from analyses.intervals import bootstrap_means, percentile_interval
from latentlab.collapse_report import COLLAPSED, Verdict, judge, summarise, summary_lines

SETS = ("fitted", "heldout_views", "heldout_images")


def run(
    path: str, subject: int, index: float, *, seed: int = 0, sphere: str = "pairs", heldout: float = 0.3
) -> dict[str, Any]:
    """A run with reconstruction distances of 0.2 to another view, and ``index`` times that at the end."""
    ends = (index, heldout, 2 * heldout)
    curves: dict[str, dict[str, list[float]]] = {
        name: {"loss": [9.0, 1.0], "to_reconstruction": [0.9, 0.2 * end], "to_view": [1.0, 0.2 * end + 0.05]}
        for name, end in zip(SETS, ends, strict=True)
    }
    if path == "discrete":
        for name, accuracy in zip(SETS, (1.0, 0.6, 0.4), strict=True):
            curves[name]["token_accuracy"] = [0.0, accuracy]
    return {
        "path": path, "tokenizer": {"continuous": "kl", "discrete": "ibq"}[path], "dims": 6, "sphere": sphere,
        "setting": "6-D, circles" if sphere == "pairs" else "6-D, no normalisation", "subject": subject, "seed": seed,
        "parameters": 6132, "positions": 512, "distinct": 200 + subject,
        "unseen": {"heldout_views": 0.25, "heldout_images": 0.5} if path == "discrete" else {},
        "iterations": [0, 1000], "latent_norm": [1.7, 1.73], "curves": curves,
        "references": {"other_view": 0.2, "uninformed": 0.4, "tokenizer_fitted": 0.05}, "picture": "runs/x.png",
    }  # fmt: skip


def runs(path: str, *indices: float, **options: Any) -> list[dict[str, Any]]:
    """One run per image."""
    return [run(path, subject, index, **options) for subject, index in enumerate(indices)]


def verdict(*groups: list[dict[str, Any]]) -> Verdict:
    return judge(summarise([one for group in groups for one in group]), "st_lpips")


HIGH, LOW, WIDE = (0.9, 1.0, 0.8), (0.01, 0.0, 0.02), (0.1, 0.9, 0.5)


@pytest.mark.parametrize(
    ("continuous", "discrete", "word"),
    [
        (HIGH, LOW, "confirmed"),
        (LOW, LOW, "refuted"),
        (HIGH, HIGH, "refuted"),
        (LOW, HIGH, "refuted"),
        (WIDE, LOW, "undecided"),
        (HIGH, WIDE, "undecided"),
    ],
)
def test_both_halves_of_the_claim(continuous: tuple[float, ...], discrete: tuple[float, ...], word: str) -> None:
    found = verdict(runs("continuous", *continuous), runs("discrete", *discrete))
    assert found.word == word
    assert found.difference is not None
    assert found.difference.value == pytest.approx(np.mean(continuous) - np.mean(discrete))


def test_the_sentence_states_numbers_criterion_and_scale() -> None:
    found = verdict(runs("continuous", *HIGH), runs("discrete", *LOW))
    for part in (
        "the continuous latents of kl collapse at 6-D, circles: collapse index 0.9 [0.6",
        "the ids of ibq do not collapse at 6-D, circles: collapse index 0.01 [0, ",
        "difference 0.89 [", "3 images x 1 seed, st_lpips, 95 % intervals over images", "index of at least 0.5",
    ):  # fmt: skip
        assert part in found.sentence
    assert "memorises at most 202 identities" in found.caveat and "25% of whose ids it never saw" in found.caveat
    assert "token accuracy 60%" in found.caveat and "continuous latents 0.3" in found.caveat
    assert found.caveat.endswith("an interval over 3 images is rough")
    assert "rough" not in verdict(runs("continuous", *[0.9] * 8)).caveat


def test_half_a_claim_is_refuted_but_never_confirmed() -> None:
    collapsed, intact = verdict(runs("continuous", *HIGH)), verdict(runs("continuous", *LOW))
    assert (collapsed.word, intact.word) == ("undecided", "refuted")
    assert "the continuous latents of kl collapse" in collapsed.sentence
    assert "no discrete tokenizer was run, so half of the claim is untested" in collapsed.caveat
    assert verdict(runs("discrete", *HIGH)).word == "refuted" and verdict(runs("discrete", *LOW)).word == "undecided"
    assert "no continuous tokenizer was run" in verdict(runs("discrete", *LOW)).caveat


def test_one_image_is_judged_over_seeds_and_one_run_not_at_all() -> None:
    seeds = [run("continuous", 0, index, seed=seed) for seed, index in enumerate(LOW)]
    found = verdict(seeds)
    assert found.word == "refuted" and "over seeds" in found.sentence and "says nothing about others" in found.caveat
    single = verdict(seeds[:1], runs("discrete", 0.9))
    assert single.word == "undecided" and "may or may not collapse" in single.sentence
    assert single.difference is not None and single.difference.interval is None


def test_the_control_without_normalisation_is_told() -> None:
    found = verdict(runs("continuous", *HIGH), runs("continuous", *LOW, sphere="none"), runs("discrete", *LOW))
    assert (
        found.word == "confirmed" and "without normalisation the continuous index is 0.01 [0, 0.0367]" in found.sentence
    )


def test_summary_is_over_images_of_means_over_seeds() -> None:
    """Ratio of means; the paired difference resamples the same images on both sides."""
    table = np.array([[0.2, 0.4], [0.6, 0.8], [0.1, 0.1]])
    group = [run("continuous", i, table[i, s], seed=s) for i in range(3) for s in range(2)]
    summary = summarise(group)[0]
    replicates = bootstrap_means(table.mean(1), 0)
    assert (summary.images, summary.seeds, summary.unit) == (3, 2, "images")
    assert summary.index.value == pytest.approx(table.mean())
    assert summary.index.interval == pytest.approx(percentile_interval(replicates, 3, (0, np.inf)))
    assert summary.to_view.value == pytest.approx(0.2 * table.mean() + 0.05)
    other = [run("discrete", i, table[i, s] - 0.1, seed=s) for i in range(3) for s in range(2)]
    difference = verdict(group, other).difference
    assert difference is not None and difference.interval == pytest.approx((0.1, 0.1))


def test_the_threshold_itself_is_a_collapse() -> None:
    assert verdict(runs("continuous", COLLAPSED, COLLAPSED), runs("discrete", *LOW[:2])).word == "confirmed"


def page_of(records: list[dict[str, Any]], shape: list[int], codes: int) -> str:
    """The summary of these runs."""
    summaries = summarise(records)
    side = {"patch": 1, "codes": codes, "normalisation": "standardised", "latent_shape": shape}
    results = {
        "verdict": judge(summaries, "st_lpips").to_dict(), "summaries": [s.to_dict() for s in summaries],
        "data": {"name": "fashion:test"}, "image_size": 32, "subjects": [0, 1, 2], "seeds": 1, "views": 8,
        "iterations": 1000, "perceptual": "st_lpips", "figures": ["figures/curves.png", "figures/curves.svg"], "command": None,
        "tokenizers": {
            "continuous": {**side, "tokenizer": {"name": "kl", "release": "fashion32"}},
            "discrete": {**side, "tokenizer": {"name": "ibq", "release": "fashion32"}},
        },
    }  # fmt: skip
    return "\n".join(summary_lines(results))


def test_cells_cannot_break_the_table() -> None:
    named = [one | {"tokenizer": "k|l <x>"} for one in runs("continuous", *HIGH)]
    records = [*named, *runs("discrete", *LOW)]
    assert "| k\\|l &lt;x> | " in page_of(records, [4, 8, 8], 512)


def test_summary_page() -> None:
    page = page_of([*runs("continuous", *HIGH), *runs("discrete", *LOW)], [8, 8, 8], 512)
    assert "**Confirmed at this scale**" in page and page.count("| kl |") == page.count("| ibq |") == 1
    assert "| ibq | 6-D, circles | 6,132 | 0.01 [0, 0.0367] |" in page and "1.000 |" in page
    assert "8 x 8 x 8, patches of 1x1 cells" in page and "![curves](figures/curves.png)" in page and ".svg" not in page
    assert "* judged by ST-LPIPS on AlexNet (st_lpips): distances of different networks do not compare" in page


def test_other_numbers_of_parameters_are_explained_in_one_line() -> None:
    records = [*runs("continuous", *LOW), *runs("discrete", *LOW)]
    line = next(line for line in page_of(records, [8, 8, 8], 512).splitlines() if line.startswith("* parameters"))
    for part in (
        "6,132 (continuous) and 6,132 (discrete) instead of the published 196,592 and 196,608",
        "the budget is 2 x 6 numbers x 512 codes of ibq = 6,144",
        "here 6 numbers, 8 per position, 512 codes, published 6 numbers, 16 per position, 16,384 codes",
    ):
        assert part in line
    for record in records:
        record["parameters"] = 196_592 if record["path"] == "continuous" else 196_608
    assert "* parameters" not in page_of(records, [16, 16, 16], 16384)
