"""The published TAEF2 on photographs of ImageNet at 256 pixels, through a store as `latentlab encode` writes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from latentlab import open_data
from latentlab.data import ImageSet
from latentlab.encoding import encode_images
from latentlab.pixels import to_unit_range
from latentlab.quality.fidelity import image_scores, psnr, to_uint8
from latentlab.quality.perceptual import perceptual_distance
from latentlab.tokenizers import Tokenizer, load_tokenizer

SHARED = Path(__file__).parents[4] / "shared" / "data"
N = 4

pytestmark = pytest.mark.skipif(
    not ((SHARED / "taef2").is_dir() and (SHARED / "imagenet_sample").is_dir()),
    reason="needs ../shared/data/taef2 and imagenet_sample beside the repository",
)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return open_data(f"imagefolder:{SHARED / 'imagenet_sample'}", limit=N)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("taef2", weights=SHARED / "taef2")


@pytest.fixture(scope="module")
def sides(
    images: ImageSet, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Tensor, Tensor]]:
    """Photographs and what comes back of them from the store; the same mirrored."""
    store = encode_images(tokenizer, images, tmp_path_factory.mktemp("store"), dtype="float16", flip=True)
    assert store.shape == (32, 32, 32) and store.n == N
    x = to_unit_range(images.images(np.arange(N)))
    return [
        (x, tokenizer.decode(store.take(slice(None)))),
        (x.flip(3), tokenizer.decode(store.mirrored().take(slice(None)))),
    ]


def scores_of(decoded: Tensor, x: Tensor) -> dict[str, float]:
    with torch.no_grad():
        scores = image_scores(to_uint8(decoded), to_uint8(x), perceptual_distance("st_lpips"))
    return {name: float(values.mean()) for name, values in scores.items()}


def test_photographs_come_back(sides: list[tuple[Tensor, Tensor]]) -> None:
    """28.9 dB, SSIM 0.86 and ST-LPIPS 0.023 over 20 of these images; the mirrored ones come back as well as the others."""
    for x, decoded in sides:
        found = scores_of(decoded, x)
        assert 25 < found["psnr"] < 33 and found["ssim"] > 0.75 and found["st_lpips"] < 0.05


def test_the_scores_notice_what_goes_wrong_in_practice(sides: list[tuple[Tensor, Tensor]]) -> None:
    """Swapped colours, a wrong pixel range and a mirrored image each cost more than 5 dB."""
    x, decoded = sides[0]
    whole = psnr(to_uint8(decoded), to_uint8(x)).mean()
    for wrong in (decoded.flip(1), (decoded + 1) / 2, decoded.flip(3)):
        assert psnr(to_uint8(wrong), to_uint8(x)).mean() < whole - 5
