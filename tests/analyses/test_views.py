import torch

from analyses.views import AREA, RATIO, _box, random_views
from latentlab.randomness import generator


def image(height: int = 40, width: int = 40) -> torch.Tensor:
    """Red grows downwards, green to the right, both linearly from pixel to pixel."""
    rows, columns = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)])


def test_the_source_decides_everything() -> None:
    first, again, other = (random_views(image(), 5, generator(seed, "views")) for seed in (0, 0, 1))
    assert first.shape == (5, 3, 40, 40) and torch.equal(first, again) and not torch.equal(first, other)


def test_views_are_enlarged_parts_and_half_of_them_are_mirrored() -> None:
    """A linear ramp stays one, with the slope of the enlargement, away from the border that interpolation repeats."""
    views = random_views(image(), 200, generator(0, "views"))
    inside = views[:, :, 8:-8, 8:-8]
    slopes = torch.stack([inside[:, 0].diff(dim=1).mean((1, 2)), inside[:, 1].diff(dim=2).mean((1, 2))])
    assert (slopes.abs() > 0.15).all() and (slopes.abs() < 1.05).all() and (slopes[0] > 0).all()
    mirrored = (slopes[1] < 0).double().mean()
    assert 0.4 < mirrored < 0.6


def test_boxes_have_the_published_areas_and_ratios() -> None:
    source = generator(0, "boxes")
    boxes = torch.tensor([_box(200, 200, source) for _ in range(2000)]).double()
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 200).all() and (left + w <= 200).all()
    area, ratio = h * w / 200**2, w / h
    assert area.min() > AREA[0] * 0.97 and area.max() <= AREA[1] and area.min() < 0.1 and area.max() > 0.9
    assert ratio.min() > RATIO[0] * 0.96 and ratio.max() < RATIO[1] * 1.04
    assert abs(float(ratio.log().mean())) < 0.02  # wide and tall alike
    assert (top == 0).any() and (top + h == 200).any()


def test_an_image_into_which_nothing_fits_is_taken_whole() -> None:
    assert _box(2, 200, generator(2, "thin")) == (0, 0, 2, 200)
