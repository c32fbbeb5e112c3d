"""The whole loss of a training step: every objective is in it, pulls as configured, and moves what it is meant to move."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from analyses.affine import Transform
from latentlab.errors import UserError
from latentlab.tokenizers.autoencoder import build_tokenizer
from latentlab.tokenizers.config import TrainConfig
from latentlab.tokenizers.losses import TokenizerLoss, WeightedSum
from latentlab.tokenizers.objectives.equivariance import transformed_pair
from latentlab.tokenizers.objectives.latent_masking import LatentMasking
from latentlab.tokenizers.objectives.local_correlation import local_correlation
from latentlab.tokenizers.objectives.low_pass import low_pass
from latentlab.tokenizers.objectives.patch_discriminator import PatchDiscriminator
from latentlab.tokenizers.objectives.settings import MaskingSettings
from latentlab.tokenizers.trainable import TrainableTokenizer, TrainOutput

from .training_pass import training_pass

SMALL: dict[str, Any] = {
    "ch": 8, "ch_mult": [1, 1, 1], "norm_groups": 4, "num_res_blocks": 1, "attn_resolutions": [], "resolution": 16,
    "z_channels": 4,
}  # fmt: skip


def config(
    quantizer: dict[str, Any] | None = None, loss: dict[str, float] | None = None, **objectives: Any
) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "release": "test",
            "architecture": {**SMALL, **(quantizer or {"quantizer": "none"})},
            "data": {"train": "fashion:test", "validation": "fashion:test"},
            "loss": {"l1": 1.0, **(loss or {})},
            "objectives": objectives,
            "optimiser": {"steps": 1, "batch_size": 4, "learning_rate": 1e-3},
        }
    )


def images(n: int = 4, side: int = 16) -> Tensor:
    coarse = torch.rand(n, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)


def build(settings: TrainConfig, discriminator: torch.nn.Module | None = None) -> TokenizerLoss:
    torch.manual_seed(0)
    return TokenizerLoss(settings, build_tokenizer(settings.architecture), discriminator)


EVERY: dict[str, dict[str, Any]] = {
    "noise": {"sigma": 0.5},
    "masking": {"probability": 1.0, "noise_ratio": 0.25, "mask_ratio": 0.25},
    "alignment": {"network": "efficientnet-lite0", "repa": 1.0},
    "equivariance": {"transforms": ["rotate"]},
    "local_correlation": {"weight": 0.05, "threshold": 0.9},
    "low_pass": {},
    "adversarial": {"width": 8, "layers": 1},
}
TERMS = {
    "noise": set(), "masking": set(), "alignment": {"repa", "alignment", "alignment_weight"},
    "equivariance": {"equivariance"}, "local_correlation": {"local_correlation", "local_correlation_weight"},
    "low_pass": {"low_pass"}, "adversarial": {"adversarial", "adversarial_weight"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(EVERY))
def test_every_objective_changes_loss_and_gradient(name: str) -> None:
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(8, 1)
    plain, shaped = build(config()), build(config(**{name: EVERY[name]}), discriminator)
    found = []
    for loss in (plain, shaped):
        total, terms, made = loss(images(), 0, 0, 4)
        total.backward()
        weight = loss.model.last_encoder_weight if name != "adversarial" else loss.model.last_decoder_weight
        assert weight.grad is not None and made.shape == (4, 3, 16, 16) and not made.requires_grad
        found.append((total.item(), set(terms), weight.grad))
    assert found[1][1] == found[0][1] | TERMS[name]
    assert found[0][0] != found[1][0] and not torch.allclose(found[0][2], found[1][2])


def test_all_at_once_and_the_sum_of_the_parts() -> None:
    settings = config({"quantizer": "kl"}, {"l2": 0.5, "perceptual": 0.3, "perceptual_size": 32, "kl": 1e-3}, **EVERY)
    total, terms, _ = build(settings, PatchDiscriminator(8, 1))(images(), 0, 0, 4)
    weights = {"l1": 1, "l2": 0.5, "perceptual": 0.3, "kl": 1e-3, "equivariance": 1, "low_pass": 1}
    weights |= {name: float(terms[f"{name}_weight"]) for name in ("alignment", "local_correlation", "adversarial")}
    wanted = sum(weight * float(terms[name]) for name, weight in weights.items())
    assert total.item() == pytest.approx(wanted, rel=1e-5) and total.item() == terms["loss"].item()


def test_a_balanced_term_pulls_as_hard_as_its_weight_says() -> None:
    weight = torch.nn.Parameter(torch.ones(5))
    found = WeightedSum()
    found.add("l1", (3 * weight).sum(), 2.0)
    found.take_reference()
    found.add("kl", (weight**2).sum(), 1.0)  # not part of the reference
    found.add_pulling("alignment", (100 * weight).sum(), 0.1, weight)
    pull = torch.autograd.grad(found.terms["alignment_weight"] * found.terms["alignment"], weight, retain_graph=True)[0]
    torch.testing.assert_close(pull, torch.full((5,), 0.6), rtol=1e-5, atol=0)
    assert found.total().item() == pytest.approx(30 + 5 + 0.1 * 6 / 100 * 500, rel=1e-5)
    fixed = WeightedSum()
    fixed.add_pulling("alignment", weight.sum(), 0.1, None)
    assert fixed.total().item() == pytest.approx(0.5) and set(fixed.terms) == {"alignment"}


BOTTLENECKS = pytest.mark.parametrize(
    ("quantizer", "weights"),
    [
        ({"quantizer": "kl"}, {"kl": 0.1}),
        ({"quantizer": "vq", "n_embed": 8}, {"commitment": 1.0, "codebook": 1.0}),
    ],
)


@BOTTLENECKS
def test_parts_of_a_batch_have_the_loss_of_the_whole(quantizer: dict[str, Any], weights: dict[str, float]) -> None:
    chosen = {k: v for k, v in EVERY.items() if k not in ("local_correlation", "alignment", "adversarial")}
    loss = build(config(quantizer, weights, **chosen))
    whole = loss(images(), 3, 0, 4)[0].item()
    parts = [loss(images()[i : i + 2], 3, i, 4)[0].item() for i in (0, 2)]
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)
    assert loss(images(), 4, 0, 4)[0].item() != whole


def learn(settings: TrainConfig, steps: int = 25) -> TrainableTokenizer:
    loss = build(settings)
    optimiser = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for step in range(steps):
        optimiser.zero_grad()
        loss(images(), step, 0, 4)[0].backward()
        optimiser.step()
    return loss.model


def test_a_few_steps_raise_the_local_correlation() -> None:
    strong = config(local_correlation={"weight": 1.0, "threshold": 0.95, "adaptive": False})
    plain, shaped = (local_correlation(learn(s).encode(images())).mean() for s in (config(), strong))
    assert shaped > plain + 0.1


def test_a_few_steps_lower_the_divergence() -> None:
    values = []
    for weight in (0.0, 0.05):
        tokenizer = learn(config({"quantizer": "kl"}, {"kl": weight}))
        values.append(tokenizer.posterior(images()).kl().mean().item())  # type: ignore[attr-defined]
    assert values[1] < 0.3 * values[0]


def test_a_few_steps_lower_the_perceptual_distance() -> None:
    """Trained on it alone, it falls further than when the error of pixels is trained on, and below the start."""
    judge = build(config(loss={"perceptual": 1.0, "perceptual_size": 32}))

    @torch.no_grad()
    def distance(tokenizer: TrainableTokenizer) -> float:
        judge.model = tokenizer
        return judge(images(), 0, 0, 4)[1]["perceptual"].item()

    seeing = config(loss={"l1": 0.0, "perceptual": 1.0, "perceptual_size": 32})
    assert distance(learn(seeing)) < 0.8 * min(distance(learn(config())), distance(build(config()).model))


@pytest.mark.parametrize("transform", [Transform("rotate", 1), Transform("flip", -1), Transform("scale", 0.5)])
def test_a_few_steps_make_the_decoder_follow_the_latent(transform: Transform) -> None:
    """Decoding the transformed latent gives the transformed image, of which nothing was said in plain training."""

    @torch.no_grad()
    def error(tokenizer: TrainableTokenizer) -> float:
        latents, wanted = transformed_pair(tokenizer.encode(images()), images(), transform)
        return (tokenizer.reconstruct(latents) - wanted).abs().mean().item()

    shaped = learn(config(equivariance={"transforms": [transform.kind]}), 40)
    assert error(shaped) < 0.9 * error(learn(config(), 40))


def test_a_few_steps_make_the_decoder_smooth() -> None:
    """Decoding the low-passed latent gives the low-passed image."""

    @torch.no_grad()
    def error(tokenizer: TrainableTokenizer) -> float:
        made = tokenizer.reconstruct(low_pass(tokenizer.encode(images()), 0.5))
        return (made - low_pass(images(), 0.5)).abs().mean().item()

    assert error(learn(config(low_pass={"smallest_band": 0.25}), 60)) < 0.9 * error(learn(config(), 60))


def test_a_few_steps_make_the_decoder_cope_with_damaged_cells() -> None:
    damage = {"probability": 1.0, "noise_ratio": 0.2, "mask_ratio": 0.2}

    @torch.no_grad()
    def error(tokenizer: TrainableTokenizer) -> float:
        damaged = LatentMasking(MaskingSettings(**damage))(tokenizer.encode(images()), torch.Generator().manual_seed(1))
        return (tokenizer.reconstruct(damaged) - images()).abs().mean().item()

    assert error(learn(config(masking=damage), 80)) < 0.9 * error(learn(config(), 80))


def test_a_few_steps_make_the_decoder_robust() -> None:
    def error(tokenizer: TrainableTokenizer) -> float:
        z = tokenizer.encode(images(4))
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)) * z.std((2, 3), keepdim=True)
        return (tokenizer.reconstruct(z + 0.7 * noise) - images()).abs().mean().item()

    assert error(learn(config(noise={"sigma": 0.7}), 80)) < 0.95 * error(learn(config(), 80))


@BOTTLENECKS
def test_changed_latents_are_decoded_once_with_the_terms_of_decoding_twice(
    quantizer: dict[str, Any], weights: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(quantizer, weights, noise=EVERY["noise"], masking=EVERY["masking"])

    def decoded_twice(self: TokenizerLoss, images: Tensor, place: tuple[int, int, int]) -> TrainOutput:
        output = training_pass(self.model, images, self._draws("noise", place))
        changed = output.latents
        for name, change in self._changes.items():
            changed = change(changed, self._draws(name, place))
        return TrainOutput(self.model.reconstruct(changed), output.latents, output.losses, output.indices)

    found = []
    for twice in (False, True):
        if twice:
            monkeypatch.setattr(TokenizerLoss, "_decoded", decoded_twice)
        loss = build(settings)
        passes: list[int] = []
        loss.model.get_submodule("decoder").register_forward_hook(lambda *_, passes=passes: passes.append(1))
        total, terms, _ = loss(images(), 0, 0, 4)
        total.backward()
        gradients = [p.grad for p in loss.parameters() if p.grad is not None]
        found.append((terms, gradients, len(passes)))
    assert found[0][2] == 1 and found[1][2] == 2
    assert found[0][0].keys() == found[1][0].keys()
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())
    assert all(map(torch.equal, found[0][1], found[1][1]))


@pytest.mark.parametrize(
    ("quantizer", "weights", "wanted"),
    [
        ({"quantizer": "none"}, {"kl": 1e-3}, r"loss.kl has a weight, but 'tiny' has no such term \(it has none\)"),
        ({"quantizer": "kl"}, {"entropy": 1.0}, r"loss.entropy has a weight, .* \(it has kl\)"),
        ({"quantizer": "vq", "n_embed": 8}, {"codebook": 1.0, "entropy": 1.0}, r"it has commitment, codebook"),
        ({"quantizer": "lfq"}, {"codebook": 1.0}, r"it has commitment, entropy"),
        ({"quantizer": "fsq", "levels": [3, 3, 3, 3]}, {"commitment": 1.0}, r"it has none"),
        ({"quantizer": "vq", "n_embed": 8}, {}, "'tiny' learns its codebook by loss.codebook alone"),
        ({"quantizer": "vq-cosine", "n_embed": 8}, {"commitment": 1.0}, "'tiny' learns its codebook by loss.codebook alone"),
    ],
)  # fmt: skip
def test_weights_of_terms_that_are_not_there_are_refused(
    quantizer: dict[str, Any], weights: dict[str, float], wanted: str
) -> None:
    with pytest.raises(UserError, match=wanted):
        build(config(quantizer, weights))


@pytest.mark.parametrize(
    ("quantizer", "weights"),
    [
        ({"quantizer": "none"}, {}),
        ({"quantizer": "kl"}, {"kl": 1e-3}),
        ({"quantizer": "vq", "n_embed": 8}, {"codebook": 1.0}),
        ({"quantizer": "vq-cosine", "n_embed": 8}, {"codebook": 1.0}),
        ({"quantizer": "ibq", "n_embed": 8}, {}),
        ({"quantizer": "lfq"}, {}),
        ({"quantizer": "fsq", "levels": [3, 3, 3, 3]}, {}),
    ],
    ids=lambda value: value.get("quantizer") if isinstance(value, dict) else None,
)
def test_the_terms_that_are_named_are_those_that_come_and_all_weights_learn(
    quantizer: dict[str, Any], weights: dict[str, float]
) -> None:
    """A weight without a gradient is one that data-parallel training would wait for."""
    loss = build(config(quantizer, weights))
    assert tuple(loss.model.encode_train(images()).losses) == loss.model.loss_terms
    loss(images(), 0, 0, 4)[0].backward()
    assert all(p.grad is not None for p in loss.parameters() if p.requires_grad)


@pytest.mark.parametrize("terms", [{"repa": 1.0}, {"mcos": 1.0}, {"mdms": 1.0}])
def test_alignment_trains_no_weight_that_it_does_not_read(terms: dict[str, float]) -> None:
    loss = build(config(alignment={"network": "efficientnet-lite0", **terms}))
    loss(images(), 0, 0, 4)[0].backward()
    assert all(p.grad is not None for p in loss.parameters() if p.requires_grad)


PERCEPTUAL = {"perceptual": 1.0}


@pytest.mark.parametrize(
    ("weights", "objectives", "side"),
    [
        (PERCEPTUAL, {}, 16),
        (PERCEPTUAL | {"perceptual_size": 8}, {}, 32),
        (PERCEPTUAL, {"equivariance": {"transforms": ["scale"]}}, 64),  # a quarter is 16
        ({}, {"adversarial": {"layers": 3, "width": 8}}, 20),
    ],
)
def test_images_too_small_for_what_judges_them_are_refused_at_once(
    weights: dict[str, float], objectives: dict[str, Any], side: int
) -> None:
    loss = build(config(loss=weights, **objectives))
    with pytest.raises(UserError, match=r"set loss.perceptual_size=64|lower objectives.adversarial.layers"):
        loss.check_side(side)


@pytest.mark.parametrize(
    ("weights", "objectives", "side"),
    [
        (PERCEPTUAL, {}, 32),
        (PERCEPTUAL | {"perceptual_size": 32}, {"equivariance": {"transforms": ["scale"]}}, 32),
        (PERCEPTUAL, {"equivariance": {"transforms": ["flip"]}}, 32),
        ({}, {"adversarial": {"layers": 3, "width": 8}}, 24),
    ],
)
def test_images_that_are_large_enough_are_judged(
    weights: dict[str, float], objectives: dict[str, Any], side: int
) -> None:
    loss = build(config(loss=weights, **objectives), PatchDiscriminator(8, 3) if "adversarial" in objectives else None)
    loss.check_side(side)
    assert loss(images(side=side), 0, 0, 4)[0].isfinite()


def test_sequences_are_refused_by_objectives_on_grids() -> None:
    settings = config(local_correlation={"weight": 1.0, "threshold": 0.5})
    tokenizer = build_tokenizer(settings.architecture)
    object.__setattr__(tokenizer.spec, "layout", "sequence")
    with pytest.raises(UserError, match="need latents on a grid"):
        TokenizerLoss(settings, tokenizer)


def test_lpips_without_its_weights_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = config(loss={"perceptual": 1.0})
    lpips = settings.model_copy(update={"loss": settings.loss.model_copy(update={"perceptual_kind": "lpips"})})
    with pytest.raises(UserError, match="not on this machine"):
        build(lpips)
