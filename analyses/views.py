"""Views of one image: random resized crops with a random flip, as image networks are trained on.

Szegedy et al. 2015 (arXiv 1409.4842, section 6): an area of 8 % to 100 % of the image, sides at a ratio of 3:4 to 4:3.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)

_ATTEMPTS = 10


def random_views(image: Tensor, count: int, source: torch.Generator) -> Tensor:  # [3,H,W] => [count,3,H,W]
    """Return ``count`` views of ``image``, of its own size (bilinear, antialiased); ``source`` decides all of them."""
    return torch.stack([_view(image, source) for _ in range(count)])


def _view(image: Tensor, source: torch.Generator) -> Tensor:
    height, width = image.shape[1:]
    top, left, h, w = _box(height, width, source)
    part = image[None, :, top : top + h, left : left + w]
    view = interpolate(part, (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return view.flip(2) if _uniform(0, 1, source) < 0.5 else view


def _box(height: int, width: int, source: torch.Generator) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random part; of the whole image when none of ten draws fits into it."""
    for _ in range(_ATTEMPTS):
        area = height * width * _uniform(*AREA, source)
        ratio = math.exp(_uniform(math.log(RATIO[0]), math.log(RATIO[1]), source))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = (int(_uniform(0, room + 1, source)) for room in (height - h, width - w))
            return top, left, h, w
    return 0, 0, height, width


def _uniform(low: float, high: float, source: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=source, dtype=torch.float64))
