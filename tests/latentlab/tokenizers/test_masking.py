"""Hidden patches: how many, where, and what becomes of them."""

import pytest
import torch

from latentlab.tokenizers.masking import annealed_ratio, draw_hidden, hide
from latentlab.tokenizers.objectives.draws import BatchGenerator


def test_shares_are_uniform_between_the_ratios_and_places_are_equally_likely() -> None:
    n, patches = 4000, 64
    hidden = draw_hidden(n, patches, (0.4, 0.6), torch.Generator().manual_seed(0))
    shares = hidden.float().mean(1)
    assert shares.min() >= round(0.4 * patches) / patches and shares.max() <= round(0.6 * patches) / patches
    # Uniform on [0.4,0.6]: mean 0.5, standard deviation 0.2/sqrt(12) = 0.0577; standard errors 0.0009 and 0.0005.
    assert shares.mean() == pytest.approx(0.5, abs=0.004) and shares.std() == pytest.approx(0.2 / 12**0.5, abs=0.003)
    assert (hidden.float().mean(0) - 0.5).abs().max() < 0.5 * 4.5 / n**0.5  # 4.5 standard errors over 64 places


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.3, 19), (0.7, 45)])
def test_one_ratio_hides_the_same_number_everywhere(ratio: float, count: int) -> None:
    hidden = draw_hidden(50, 64, (ratio, ratio), torch.Generator().manual_seed(0))
    assert hidden.sum(1).tolist() == [count] * 50
    assert count == 0 or len(hidden.unique(dim=0)) == 50


def test_a_part_of_a_batch_hides_what_the_whole_batch_hides_there() -> None:
    whole = draw_hidden(6, 16, (0.4, 0.6), torch.Generator().manual_seed(3))
    part = draw_hidden(2, 16, (0.4, 0.6), BatchGenerator.of(torch.Generator().manual_seed(3), first=2, total=6))
    assert torch.equal(part, whole[2:4])


def test_hidden_patches_become_the_token_and_others_stay() -> None:
    patches = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    token = torch.full((1, 1, 4), 7.0, requires_grad=True)
    hidden = torch.tensor([[True, False, False], [False, True, True]])
    out = hide(patches, hidden, token)
    assert torch.equal(out[hidden], torch.full((3, 4), 7.0)) and torch.equal(out[~hidden], patches[~hidden])
    out.sum().backward()
    assert patches.grad is not None and token.grad is not None
    assert torch.equal(patches.grad, (~hidden).float()[..., None].expand(-1, -1, 4)) and token.grad.sum() == 12


def test_annealing_is_linear_from_60_percent_to_nothing() -> None:
    values = [annealed_ratio(step, 50_000) for step in (0, 12_500, 25_000, 49_999, 50_000, 60_000)]
    assert values == pytest.approx([0.6, 0.45, 0.3, 0.6 / 50_000, 0.0, 0.0])
