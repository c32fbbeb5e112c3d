"""SRSS against its definition in loops, closed forms, masks of all kinds, and what must not change the value."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import latentlab
from analyses.srss import _Contrast, _within
from latentlab.errors import UserError


def srss(z: np.ndarray, masks: np.ndarray, **options: object) -> latentlab.Measurement:
    return latentlab.measure("srss", z, masks=masks, **options)


def reference(
    z: np.ndarray, masks: np.ndarray, d_pos: int = 1, d_pos_min: int = 1, d_neg: int = 6, normalize: bool = True
) -> np.ndarray:
    """The definition, anchor by anchor, NaN for images without one, [n]; masks on the grid."""
    z = z.astype(np.float64)
    if normalize:
        z = (z - z.mean((0, 2, 3), keepdims=True)) / z.std((0, 2, 3), ddof=1, keepdims=True)
    values = []
    for x, mask in zip(z, masks, strict=True):
        cells = list(np.ndindex(mask.shape))
        units = {cell: x[:, *cell] / max(np.linalg.norm(x[:, *cell]), 1e-12) for cell in cells}
        contrasts = []
        for a in (cell for cell in cells if mask[cell]):
            alike, different = [], []
            for t in cells:
                distance = abs(a[0] - t[0]) + abs(a[1] - t[1])
                if mask[t] and d_pos_min <= distance <= d_pos:
                    alike.append(units[a] @ units[t])
                if not mask[t] and distance >= d_neg:
                    different.append(units[a] @ units[t])
            if alike and different:
                contrasts.append(np.mean(alike) - np.mean(different))
        values.append(np.mean(contrasts) if contrasts else np.nan)
    return np.array(values)


def latents_and_masks(
    n: int = 6, shape: tuple[int, int, int] = (4, 6, 10), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth latents with channels of different offset and scale, and a rectangle of foreground in each image."""
    rng = np.random.default_rng(seed)
    c, h, w = shape
    blur = [0.7 ** np.abs(np.subtract.outer(np.arange(side), np.arange(side))) for side in (h, w)]
    z = np.einsum("gh,nchw,wv->ncgv", blur[0], rng.standard_normal((n, *shape)), blur[1])
    masks = np.zeros((n, h, w), dtype=bool)
    for mask, top, left in zip(masks, rng.integers(0, h // 2, n), rng.integers(0, w // 2, n), strict=True):
        mask[top : top + h // 2 + 1, left : left + w // 2] = True
    return z * np.linspace(0.5, 4, c)[:, None, None] + np.linspace(-2, 3, c)[:, None, None], masks


def test_two_regions_of_one_direction_each() -> None:
    """Foreground tokens along one unit vector, background along another at cosine 0.3: SRSS = 1 - 0.3."""
    _, masks = latents_and_masks(4, (2, 8, 8))
    foreground, background = np.array([1.0, 0.0]), np.array([0.3, np.sqrt(1 - 0.3**2)])
    length = np.random.default_rng(0).uniform(0.5, 3, (4, 1, 8, 8))
    z = np.where(masks[:, None], foreground[:, None, None], background[:, None, None]) * length
    measured = srss(z, masks, normalize=False)
    assert measured.value == pytest.approx(0.7, abs=1e-12)
    assert measured.companions["positive similarity"].value == pytest.approx(1, abs=1e-12)
    assert measured.companions["negative similarity"].value == pytest.approx(0.3, abs=1e-12)
    assert srss(z, ~masks, normalize=False, d_neg=4).value == pytest.approx(0.7, abs=1e-12)


@pytest.mark.parametrize("reach", [0, 1, 3, 7, 20])
def test_sums_within_a_distance(reach: int) -> None:
    """Against the matrix of all distances."""
    fields = torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cells = torch.tensor(list(np.ndindex(5, 8)))
    near = (cells[:, None] - cells).abs().sum(2) <= reach
    expected = (fields.flatten(1) @ near.double()).view_as(fields)
    torch.testing.assert_close(_within(fields, reach), expected, rtol=1e-12, atol=1e-12)


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_no_matrix_of_all_pairs_of_cells_is_made() -> None:
    units, mask = torch.randn(2, 4, 32, 32), torch.rand(2, 32, 32) < 0.5
    with _Largest() as largest:
        _Contrast((32, 32), 1, 2, 6)(units, mask)
    assert units.numel() <= largest.numbers < 1024**2 / 10


def test_tokens_shorter_than_the_epsilon_fade_out() -> None:
    """The smallest length is 1e-12, smaller than that of LDS and CDS: a tenth of it leaves a hundredth of K."""
    z, masks = latents_and_masks()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    value = srss(z, masks, normalize=False).value
    assert srss(1e-11 * z, masks, normalize=False).value == pytest.approx(value, rel=1e-12)
    assert srss(1e-13 * z, masks, normalize=False).value == pytest.approx(1e-2 * value, rel=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("d_pos", "d_pos_min", "d_neg"), [(1, 1, 6), (2, 1, 4), (2, 2, 5), (3, 2, 8), (1, 1, 1), (14, 1, 9)]
)
def test_equals_the_loops(d_pos: int, d_pos_min: int, d_neg: int, normalize: bool) -> None:
    z, masks = latents_and_masks()
    options = {"d_pos": d_pos, "d_pos_min": d_pos_min, "d_neg": d_neg, "normalize": normalize}
    measured = srss(z, masks, **options)
    assert measured.value == pytest.approx(np.nanmean(reference(z, masks, **options)), abs=1e-12)
    assert {key: measured.parameters[key] for key in options} == options


@pytest.mark.parametrize("shape", [(3, 6, 10), (5, 9, 4), (8, 16, 16), (2, 2, 9)])
def test_scattered_masks_on_grids_of_any_shape(shape: tuple[int, int, int]) -> None:
    z, _ = latents_and_masks(4, shape)
    masks = np.random.default_rng(1).random((4, *shape[1:])) < 0.5
    for options in ({}, {"d_pos": 2, "d_neg": 4}):
        assert srss(z, masks, **options).value == pytest.approx(np.nanmean(reference(z, masks, **options)), abs=1e-12)


def test_images_without_an_anchor_are_left_out_and_counted() -> None:
    """No foreground, one foreground cell, foreground that touches nowhere, no background, background that is near only."""
    z, masks = latents_and_masks(9)
    masks[:5] = False
    masks[1, 2, 3] = True
    masks[2, 0, ::2] = True
    masks[3] = True
    masks[4] = True
    masks[4, 2, 4] = False
    expected = reference(z, masks, d_neg=9)
    assert np.isnan(expected[:5]).all() and np.isfinite(expected[5:]).all()
    measured = srss(z, masks, d_neg=9)
    assert measured.value == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert measured.n == 4
    assert measured.details["images"] == {"measured": 4, "too little foreground or background": 0, "no anchor": 5}
    assert measured.warnings[0].startswith("5 of 9 images have no foreground cell with both kinds of tokens")


def test_no_image_to_measure_is_refused() -> None:
    z, masks = latents_and_masks()
    with pytest.raises(UserError, match=r"none of 6 images.* 6 have no foreground cell with foreground nearby"):
        srss(z, np.ones_like(masks))
    with pytest.raises(UserError, match="none of 6 images: 6 have less than 45% foreground or background"):
        srss(z, np.zeros_like(masks), min_share=0.45)


def test_masks_at_image_resolution() -> None:
    """A cell is foreground when any of its pixels is, or, asked for, when the upper left one is."""
    z, _ = latents_and_masks(5, (4, 6, 8))
    masks = np.random.default_rng(0).random((5, 12, 24)) < 0.15
    pooled, nearest = masks.reshape(5, 6, 2, 8, 3).any((2, 4)), masks[:, ::2, ::3]
    for mode, cells in (("maxpool", pooled), ("nearest", nearest)):
        measured = srss(z, masks, mask=mode, min_share=0)
        assert measured.value == pytest.approx(np.nanmean(reference(z, cells)), abs=1e-12)
        assert f"{mode} masks" in measured.variant and measured.parameters["mask"] == mode
    assert srss(z, masks, min_share=0).value == srss(z, masks, min_share=0, mask="maxpool").value


def test_a_quarter_of_each_kind_is_the_default_for_masks_at_image_resolution() -> None:
    """64 of 256 cells are enough, 63 are not, of either kind; masks on the grid are taken as they are."""
    z, _ = latents_and_masks(5, (2, 16, 16))
    flat = np.zeros((5, 256), dtype=bool)
    for row, count in zip(flat, (63, 64, 128, 192, 193), strict=True):
        row[:count] = True
    on_grid = flat.reshape(5, 16, 16)
    at_image = on_grid.repeat(2, 1).repeat(2, 2)
    expected = reference(z, on_grid)
    measured = srss(z, at_image)
    assert measured.value == pytest.approx(expected[1:4].mean(), abs=1e-12)
    assert measured.n == 3 and measured.parameters["min_share"] == 0.25
    assert measured.warnings == ("2 of 5 images have less than 25% foreground or background cells and were left out",)
    assert srss(z, on_grid).value == pytest.approx(expected.mean(), abs=1e-12)
    assert srss(z, on_grid, min_share=0.25).value == measured.value
    assert srss(z, at_image, min_share=0).value == srss(z, on_grid).value
    assert srss(z, at_image, min_share=0.5).n == 1


@pytest.mark.parametrize("shape", [(4, 6, 10), (32, 16, 16)])
def test_float32_equals_float64(shape: tuple[int, int, int]) -> None:
    z, masks = latents_and_masks(20, shape)
    for options in ({}, {"normalize": False}, {"d_pos": 2, "d_neg": 4}):
        quick = srss(z.astype(np.float32), masks, **options).value
        assert quick == pytest.approx(srss(z.astype(np.float32).astype(np.float64), masks, **options).value, abs=5e-7)


def test_batches_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    z, masks = latents_and_masks(40)
    whole = srss(z, masks)
    order = np.random.default_rng(0).permutation(40)
    assert srss(z[order], masks[order]).value == pytest.approx(whole.value, abs=1e-13)
    monkeypatch.setattr("analyses.spatial._PIECE_BYTES", 2000)
    monkeypatch.setattr("latentlab.latents.BATCH_BYTES", 7000)
    assert srss(z, masks).value == pytest.approx(whole.value, abs=1e-13)
    assert srss(z, masks).interval == pytest.approx(whole.interval, abs=1e-13)


def test_invariances() -> None:
    z, masks = latents_and_masks()
    value = srss(z, masks).value
    scale = np.array([1, 20, 0.3, 5])[:, None, None]
    assert srss(z * scale + scale, masks).value == pytest.approx(value, abs=1e-10)
    assert srss(z[:, :, ::-1].copy(), masks[:, ::-1].copy()).value == pytest.approx(value, abs=1e-12)
    turned = srss(z.swapaxes(2, 3).copy(), masks.swapaxes(1, 2).copy())
    assert turned.value == pytest.approx(value, abs=1e-12)
    assert srss(z, masks[::-1].copy()).value != pytest.approx(value, abs=1e-3)


def test_interval_is_the_bootstrap_over_images_and_replicates_are_paired() -> None:
    """Also where images are left out: their number varies from resampling to resampling."""
    z, masks = latents_and_masks(300, (4, 5, 8))
    masks[::3] = False
    measured = srss(z, masks, normalize=False)
    per_image = reference(z, masks, normalize=False)
    half = 1.96 * np.nanstd(per_image) / np.sqrt(200)
    assert measured.n == 200 and np.diff(measured.interval) == pytest.approx(2 * half, rel=0.15)
    assert measured.interval == pytest.approx(np.percentile(measured.replicates, (2.5, 97.5)))
    rough = srss(z + 0.3 * np.random.default_rng(1).standard_normal(z.shape), masks, normalize=False)
    difference = measured.replicates - rough.replicates
    assert difference.std() < 0.5 * np.hypot(measured.replicates.std(), rough.replicates.std())


def test_one_image_has_no_interval() -> None:
    z, masks = latents_and_masks(3)
    masks[1:] = False
    measured = srss(z, masks)
    assert measured.interval is None and measured.replicates is None and measured.n == 1
    assert any("one image was measured" in warning for warning in measured.warnings)


def test_tokens_need_a_layout() -> None:
    z, masks = latents_and_masks()
    tokens = z.reshape(6, 4, 60).transpose(0, 2, 1)
    assert srss(tokens, masks, grid=(6, 10)).value == pytest.approx(srss(z, masks).value, abs=1e-12)
    with pytest.raises(UserError, match="grid"):
        srss(tokens, masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_neg": 15}, "d_neg=15 does not fit a 6x10 grid: no two cells are more than 14 apart"),
        ({"d_pos": 15}, "d_pos=15 does not fit"),
        ({"d_neg": 0}, "d_neg must be at least 1 cells, got 0"),
        ({"d_pos_min": 0}, "d_pos_min must be at least 1 cells, got 0"),
        ({"d_pos_min": 3, "d_pos": 2}, "d_pos must be at least d_pos_min, got d_pos=2 and d_pos_min=3"),
        ({"mask": "none"}, "unknown mask mode 'none'"),
        ({"min_share": 0.6}, r"min_share must lie in \[0, 0.5\], got 0.6"),
        ({"min_share": -0.1}, "min_share must lie"),
        ({"far": 4}, "unknown parameter"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        srss(*latents_and_masks(), **options)


def test_masks_are_needed() -> None:
    with pytest.raises(UserError, match="'srss' needs masks, and these latents have none"):
        srss(latents_and_masks()[0], None)


def test_non_finite_latents_are_refused() -> None:
    z, masks = latents_and_masks()
    z[3, 1, 0, 0] = np.nan
    with pytest.raises(UserError, match="image 3"):
        srss(z, masks, normalize=False)
