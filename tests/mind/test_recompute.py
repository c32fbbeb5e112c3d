"""Small networks keep their activations by default, large ones do not."""

import pytest
import torch
from torch import nn

from mind.recompute import default_recompute


@pytest.mark.parametrize(("width", "expected"), [(3_000, "nothing"), (3_200, "cheap")])
def test_the_default_is_by_size(width: int, expected: str) -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width))
    assert default_recompute(network) == expected
