"""Ablation grids: what the shipped ones contain, and which mistakes in a grid are found when it is read."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from latentlab.configuration import shipped_configs
from latentlab.errors import UserError
from mind.ablation import GRIDS, Grid, as_overrides, dotted, load_grid
from mind.train_config import load_config

SMALL: dict[str, Any] = {
    "title": "T", "base": "mind-fashion", "samples": 10, "train": {"optimiser": {"steps": 5}}, "sample": {"steps": 7},
    "published": {"source": "nowhere", "columns": {"fid": "FID"}, "compare": "fid"},
    "rows": [
        {"label": "a", "published": {"fid": 1}},
        {"label": "b", "train": {"optimiser.steps": 6}, "sample": {"steps": 8, "eta": 0.5}},
    ],
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


# --- shipped grids ----------------------------------------------------------------------------------------------------

PUBLISHED_FID = {
    "hypersphere": [52.10, 280.78, 194.61, 124.40, None],
    "components": [280.78, 53.03, 52.10, 19.32, 11.38, 12.00, 6.42, 2.64],
    "embedding-noise": [125.40, 206.19, 34.91, 38.95, 43.03, 44.07, 52.03],
    "residual": [34.91, 33.91, 43.03, 40.57],
    "schedules": [44.10, 45.10, 44.51, None, None, None, None],
    "sampling": [41.06, 41.13, 44.10, 45.32, 43.23, 44.55, 45.10, 45.15, 44.51, None, None],
    "stages": [11.38, None, None, 12.00, None, 6.42, None, None, 2.64, None],
}
"""FID by row, typed from tables 5, 6, 8, 9 and S-1 of arXiv 2606.00094 (2,000 samples where there are both)."""

SCHEDULES = (
    "linear", "cosine", "shifted_cosine", "mid_dense", "late_dense", "early_dense", "logsnr_uniform",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_FID)
def test_published_numbers(name: str) -> None:
    assert [row.published.get("fid") for row in load_grid(name).rows] == PUBLISHED_FID[name]


def test_guidance_space_has_each_row_of_its_table_twice_and_trains_what_embedding_noise_trains() -> None:
    """Table S-2: the same seven models, guided on logits and on features."""
    rows = load_grid("guidance-space").rows
    by_space = {
        space: [row for row in rows if row.sample.get("guidance_space", "logits") == space]
        for space in ("logits", "feature")
    }
    assert [row.published["fid"] for row in by_space["logits"]] == PUBLISHED_FID["embedding-noise"]
    features = [row.published["fid"] for row in by_space["feature"] if row.published]
    assert features == [122.71, 233.21, 37.62, 42.90, 48.41, 49.89, 61.24]
    ablated = load_grid("embedding-noise")
    grid = load_grid("guidance-space")
    mine = {str(grid.training(row, 0)) for row in grid.rows}
    assert mine == {str(ablated.training(row, 0)) for row in ablated.rows}


def test_shipped_grids_are_readable_and_complete() -> None:
    names = sorted(shipped_configs(GRIDS))
    assert names == [
        "components", "embedding-noise", "eta", "guidance-space", "hypersphere", "released-vs-paper", "residual",
        "sampling", "schedules", "stages",
    ]  # fmt: skip
    for name in names:
        grid = load_grid(name)
        assert (grid.base is None) != (grid.weights is None)
        if grid.base is not None:  # every row can be trained, whatever the base is
            for row in grid.rows:
                assert load_config("mind-fashion", as_overrides(grid.training(row, 0))).mind.vocab_size == 512
    assert {load_grid("schedules").settings(row).schedule for row in load_grid("schedules").rows} == set(SCHEDULES)


def test_hypersphere_rows_are_those_of_the_table() -> None:
    """A on the sphere, B to E without; B and D differ from C in one thing each."""
    grid = load_grid("hypersphere")
    rows = [load_config("mind-fashion", as_overrides(grid.training(row, 0))).mind for row in grid.rows]
    assert [(m.normalise, m.embedding_init) for m in rows] == [
        (True, "xavier"), (False, "xavier"), (False, "normal"), (False, "normal"), (False, "released"),
    ]  # fmt: skip
    assert [m.noise_factor for m in rows] == [0.6, 0.6, 0.6, 1.2, 0.6]
    assert all(grid.settings(row).cfg_scale == 1 for row in grid.rows)


def test_released_row_is_the_default_sampler_with_fewer_steps() -> None:
    from mind.settings import SamplerSettings

    grid = load_grid("released-vs-paper")
    assert grid.settings(grid.rows[0]) == SamplerSettings(steps=25)
    paper = grid.settings(grid.rows[-1])
    assert (paper.init_mode, paper.soft_stage, paper.cfg_guidance_clip) == ("pure_noise", "sphere_full", 0)


def test_rows_of_released_against_paper_draw_different_tokens() -> None:
    """top-k within the window leaves the same tokens whatever the window is, so that the window alone is no row."""
    grid = load_grid("released-vs-paper")
    settings = [grid.settings(row) for row in grid.rows]
    windows = [one.top_k if one.topk_window == "full" else min(one.topk_window, one.top_k) for one in settings]
    told = {one.model_copy(update={"topk_window": window}) for one, window in zip(settings, windows, strict=True)}
    assert len(told) == len(grid.rows)
    assert settings[-1].topk_window == "full"


def test_rows_of_components_differ_in_their_component_alone() -> None:
    """All start from xavier, as the published row C does in table 5; guided rows are clipped like those of the stages grid."""
    grid, stages = load_grid("components"), load_grid("stages")
    rows = [load_config("mind-fashion", as_overrides(grid.training(row, 0))).mind for row in grid.rows]
    assert {row.embedding_init for row in rows} == {"xavier"}
    assert [row.normalise for row in rows] == [False] + 7 * [True]
    clips = {s.cfg_guidance_clip for s in map(stages.settings, stages.rows) if s.cfg_scale > 1}
    assert {s.cfg_guidance_clip for s in map(grid.settings, grid.rows) if s.cfg_scale > 1} == clips == {2.0}


# --- reading ----------------------------------------------------------------------------------------------------------


def test_rows_override_what_all_share(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path))
    a, b = grid.rows
    assert grid.training(a, 3) == {"optimiser.steps": 5, "seed": 3}  # nested in the file
    assert grid.training(b, 0) == {"optimiser.steps": 6, "seed": 0}
    assert (grid.settings(a).steps, grid.settings(b).steps, grid.settings(b).eta) == (7, 8, 0.5)


def test_command_line_changes_what_all_share(tmp_path: Path) -> None:
    grid = load_grid(
        written(tmp_path, train={"optimiser.steps": 5}), ["train.optimiser.steps=9", "sample.steps=3", "samples=4"]
    )
    assert grid.training(grid.rows[0], 0)["optimiser.steps"] == 9 and grid.samples == 4
    assert grid.settings(grid.rows[0]).steps == 3 and grid.settings(grid.rows[1]).steps == 8


def test_dotted_and_overrides() -> None:
    flat = dotted({"a": {"b": {"c": 1}, "d": [2]}, "e.f": None})
    assert flat == {"a.b.c": 1, "a.d": [2], "e.f": None}
    assert as_overrides({"a": True, "b": 1e-4, "c": "x y", "d": [8, 8]}) == [
        "a=true",
        "b=0.0001",
        'c="x y"',
        "d=[8, 8]",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "fashion32"}, "give base .* or weights .*, and not both"),
        ({"base": None}, "give base .* or weights"),
        ({"base": None, "weights": "fashion32", "train": {}}, "row 'b' would train, but the grid samples from weights"),
        ({"rows": [{"label": "a"}, {"label": "a"}]}, "two rows are called 'a'"),
        ({"rows": [{"label": "a", "published": {"is": 1}}]}, "row 'a': published has no column is"),
        ({"rows": [{"label": "a", "sample": {"stepz": 1}}]}, "row 'a': sampler settings: unknown key 'stepz'"),
        ({"rows": [{"label": "a", "sample": {"eta": 2}}]}, "row 'a': sampler settings: eta"),
        ({"rows": []}, "rows"),
        ({"published": {"source": "", "columns": {"fid": "FID"}, "compare": "is"}}, "compare: 'is' is not among"),
        ({"titel": "T"}, "titel"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_grid(written(tmp_path, **changes))
    assert "\n" not in str(caught.value) and "grid.yaml" in str(caught.value)


def test_unknown_grid_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"unknown ablation 'hyperspher'. Did you mean hypersphere"):
        load_grid("hyperspher")


def test_grids_are_plain_values() -> None:
    """What a grid holds is what its file says: nothing is lost on the way through the model."""
    grid = Grid.model_validate(SMALL)
    assert Grid.model_validate(grid.model_dump()) == grid
