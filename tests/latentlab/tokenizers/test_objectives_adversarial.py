"""The adversarial game: hinge losses in closed form, what the discriminators see, and that both players learn."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from latentlab.ranks import Ranks
from latentlab.tokenizers.adversary import Adversary
from latentlab.tokenizers.objectives.adversarial import build_discriminator, discriminator_loss, tokenizer_loss
from latentlab.tokenizers.objectives.lecam import ScoreAverages, lecam_penalty
from latentlab.tokenizers.objectives.patch_discriminator import PatchDiscriminator
from latentlab.tokenizers.objectives.settings import AdversarialSettings

CPU = torch.device("cpu")


def images(n: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train_step(adversary: Adversary, parts: Sequence[tuple[Tensor, Tensor]], rate: float) -> Tensor:
    """Take both halves of the discriminator's step; return its loss."""
    loss, _ = adversary.take_gradients(parts)
    adversary.step(rate)
    return loss


def test_hinges_in_closed_form() -> None:
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 0.0])
    assert discriminator_loss(real, made).item() == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 1) / 3) / 2)
    assert discriminator_loss(torch.zeros(4), torch.zeros(4)).item() == 1.0
    assert tokenizer_loss(made).item() == 1.0
    scores = made.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(tokenizer_loss(scores), scores)
    torch.testing.assert_close(gradient, torch.full((3,), -1 / 3))


def test_patchgan_is_the_published_size_and_sees_70_pixels() -> None:
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_765_633
    discriminator = PatchDiscriminator(8, 3).double()
    for module in discriminator.modules():  # norms look at the whole image; the patch is that of the convolutions
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    x = images(1, 128).double().requires_grad_()
    scores = discriminator(x)
    assert scores.shape == (1, 1, 14, 14)
    (gradient,) = torch.autograd.grad(scores[0, 0, 7, 7], x)
    seen = gradient[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


@pytest.mark.parametrize("kind", ["patch", "features"])
def test_scores_do_not_depend_on_other_images(kind: str) -> None:
    torch.manual_seed(0)
    discriminator = build_discriminator(AdversarialSettings(kind=kind, width=8, layers=2))  # type: ignore[arg-type]
    x = images(3)
    torch.testing.assert_close(discriminator(x)[1:2], discriminator(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "features"])
def test_the_discriminator_learns_and_its_gradient_leads_towards_images(kind: str) -> None:
    torch.manual_seed(0)
    settings = AdversarialSettings(kind=kind, width=8, layers=2, learning_rate=3e-3)  # type: ignore[arg-type]
    adversary = Adversary(settings, Ranks(), CPU)
    smooth = torch.nn.functional.avg_pool2d(images(8), 5, 1, 2)
    losses = [train_step(adversary, [(images(8), smooth)], 0.0).item() for _ in range(15)]
    assert losses[0] == pytest.approx(1.0, abs=0.4) and losses[-1] < 0.6 * losses[0]
    made = smooth.clone().requires_grad_()
    with adversary.still():
        before = tokenizer_loss(adversary.discriminator(made))
        before.backward()
    assert made.grad is not None and all(
        p.grad is None or p.requires_grad for p in adversary.discriminator.parameters()
    )
    after = tokenizer_loss(adversary.discriminator(made.detach() - 0.3 * made.grad / made.grad.norm()))
    assert after.item() < before.item()


def test_parts_add_up_to_the_batch_and_the_state_comes_back() -> None:
    def fresh() -> Adversary:
        torch.manual_seed(0)
        return Adversary(AdversarialSettings(width=8, layers=2), Ranks(), CPU)

    whole, parts, other = fresh(), fresh(), fresh()
    real, made = images(4), images(4, seed=1)
    one = train_step(whole, [(real, made)], 1e-3)
    two = train_step(parts, [(real[:2], made[:2]), (real[2:], made[2:])], 1e-3)
    assert two.item() == pytest.approx(one.item(), rel=1e-5)
    for a, b in zip(whole.discriminator.parameters(), parts.discriminator.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    other.restore(copy.deepcopy(whole.state()))
    again = [train_step(player, [(real, made)], 1e-3).item() for player in (whole, other)]
    assert again[0] == again[1]
    assert all(map(torch.equal, whole.discriminator.parameters(), other.discriminator.parameters()))


def test_the_discriminators_gradient_is_clipped_and_told_before_it_moves() -> None:
    torch.manual_seed(0)
    adversary = Adversary(AdversarialSettings(width=8, layers=2, clip_norm=1e-3), Ranks(), CPU)
    before = [p.detach().clone() for p in adversary.discriminator.parameters()]
    _, norm = adversary.take_gradients([(images(2), images(2, seed=1))])
    lengths = torch.stack([p.grad.norm() for p in adversary.discriminator.parameters() if p.grad is not None])
    assert norm > 1e-3 and lengths.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert all(map(torch.equal, adversary.discriminator.parameters(), before))


# --- LeCam ------------------------------------------------------------------------------------------------------------


def test_the_penalty_in_closed_form() -> None:
    real, made = torch.tensor([2.0, -3.0]), torch.tensor([1.0, -2.0])
    averages = torch.tensor([0.5, -1.0])
    assert lecam_penalty(real, made, averages).item() == pytest.approx((3.0**2 + 0) / 2 + (0 + 2.5**2) / 2)
    scores = [real.clone().requires_grad_(), made.clone().requires_grad_()]
    lecam_penalty(*scores, averages).backward()
    assert scores[0].grad is not None and scores[0].grad.tolist() == [3.0, 0.0]  # down to the average of the others
    assert scores[1].grad is not None and scores[1].grad.tolist() == [0.0, -2.5]  # and up to it


def test_averages_follow_the_scores_of_both() -> None:
    averages = ScoreAverages(CPU)
    for _ in range(5000):
        averages.update(torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(averages.values, torch.tensor([2.0, -1.0]) * (1 - 0.999**5000), rtol=1e-3, atol=0)


def test_the_penalty_keeps_scores_together_and_its_averages_come_back() -> None:
    def fresh(lecam: float) -> Adversary:
        torch.manual_seed(0)
        return Adversary(AdversarialSettings(width=8, layers=2, learning_rate=3e-3, lecam=lecam), Ranks(), CPU)

    smooth = torch.nn.functional.avg_pool2d(images(8), 5, 1, 2)
    gaps = []
    for lecam in (0.0, 0.3):
        adversary = fresh(lecam)
        for _ in range(20):
            train_step(adversary, [(images(8), smooth)], 0.0)
        with torch.no_grad():
            real, made = (adversary.discriminator(x).mean().item() for x in (images(8), smooth))
        gaps.append(real - made)
    assert 0 < gaps[1] < 0.8 * gaps[0]
    other = fresh(0.3)
    other.restore(copy.deepcopy(adversary.state()))
    assert adversary.state()["scores"].abs().min() > 0
    again = [train_step(player, [(images(8), smooth)], 0.0) for player in (adversary, other)]
    assert torch.equal(*again)
    assert all(map(torch.equal, adversary.discriminator.parameters(), other.discriminator.parameters()))


def test_frozen_networks_are_not_in_the_state() -> None:
    adversary = Adversary(AdversarialSettings(kind="features", width=8), Ranks(), CPU)
    assert set(adversary.state()["weights"]) == {
        n for n, _ in adversary.discriminator.named_parameters() if "heads" in n
    }
