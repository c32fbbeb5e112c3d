"""Settings of the objectives that shape latents; a section that is left out switches its objective off. Imports no torch."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from latentlab.configuration import Beta, Strict


class NoiseSettings(Strict):
    """Gaussian noise on the latent before it is decoded (`objectives.latent_noise`)."""

    sigma: PositiveFloat
    """Standard deviation as a multiple of the latent's own, per image and channel."""


class MaskingSettings(Strict):
    """Latent masking, LMR (`objectives.latent_masking`)."""

    probability: float = Field(gt=0, le=1)
    """Share of the images whose latents are damaged."""
    noise_ratio: float = Field(ge=0, le=1)
    """Share of their cells that become noise."""
    mask_ratio: float = Field(ge=0, le=1)
    """Share of their cells that become the mask, which is 0."""

    @model_validator(mode="after")
    def _fit(self) -> "MaskingSettings":
        if self.noise_ratio + self.mask_ratio > 1:
            raise ValueError(f"noise_ratio {self.noise_ratio} and mask_ratio {self.mask_ratio} add up to more than 1")
        return self


class AlignmentSettings(Strict):
    """Alignment of the latent with a frozen vision network (`objectives.alignment`)."""

    network: str
    """Name in `objectives.vision_networks`, such as ``efficientnet-lite0`` or ``dinov2-l``."""
    repa: NonNegativeFloat = 0.0
    """Weight of 1 - cosine."""
    mcos: NonNegativeFloat = 0.0
    """Weight of the cosine with a margin."""
    mdms: NonNegativeFloat = 0.0
    """Weight of the difference of the pairwise cosines with a margin."""
    cosine_margin: NonNegativeFloat = 0.5
    """Of ``mcos``: a cosine above 1 less this costs nothing."""
    distance_margin: NonNegativeFloat = 0.25
    """Of ``mdms``: a smaller difference costs nothing."""
    weight: PositiveFloat = 0.1
    """Of all of them together."""
    adaptive: bool = True
    """Multiply the weight by the ratio of the gradient norms of reconstruction and alignment at the encoder's last layer."""

    @model_validator(mode="after")
    def _something(self) -> "AlignmentSettings":
        if not (self.repa or self.mcos or self.mdms):
            raise ValueError("give repa, mcos or mdms a weight above 0")
        return self


class EquivarianceSettings(Strict):
    """Decode the transformed latent against the transformed image, EQ-VAE (`objectives.equivariance`)."""

    transforms: tuple[Literal["scale", "rotate", "flip"], ...] = Field(("scale", "rotate"), min_length=1)
    """One of them is drawn in every step."""
    smallest_scale: float = Field(0.25, gt=0, lt=1)
    """Least factor that ``scale`` draws."""
    weight: PositiveFloat = 1.0
    """Relative to the reconstruction of the images as they are."""


class LocalCorrelationSettings(Strict):
    """Local correlation, LCR (`objectives.local_correlation`)."""

    weight: PositiveFloat
    """Of the term."""
    threshold: float = Field(gt=-1, le=1)
    """Correlation above which there is nothing to gain."""
    adaptive: bool = True
    """Multiply the weight by the ratio of the gradient norms of reconstruction and this term at the encoder's last layer."""


class LowPassSettings(Strict):
    """Decode the low-passed latent against the low-passed image (`objectives.low_pass`)."""

    smallest_band: float = Field(0.25, gt=0, lt=1)
    """Share of the frequencies per axis that is kept at least; every step draws one from this to less than 1."""
    weight: PositiveFloat = 1.0
    """Relative to the reconstruction of the images as they are."""


class AdversarialSettings(Strict):
    """A discriminator that tells reconstructions from images (`objectives.adversarial`)."""

    kind: Literal["patch", "features"] = "patch"
    """A PatchGAN on pixels, or small heads on the maps of a frozen vision network."""
    network: str = "efficientnet-lite0"
    """The frozen network of ``features``."""
    width: int = Field(64, gt=0)
    """Channels of the PatchGAN's first layer, or of the heads."""
    layers: int = Field(3, gt=0)
    """Halvings of the side in the PatchGAN."""
    weight: PositiveFloat = 0.5
    """Of the term."""
    adaptive: bool = True
    """Multiply the weight by the ratio of the gradient norms of reconstruction and this term at the decoder's last layer."""
    start: NonNegativeInt = 0
    """First step with this term; the discriminator learns from it on."""
    learning_rate: PositiveFloat | None = None
    """Of the discriminator; None for the tokenizer's, with its warm-up and decay."""
    betas: tuple[Beta, Beta] = (0.5, 0.9)
    """Adam's, of the discriminator."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the discriminator's gradient; a longer one is shortened to it."""
    lecam: NonNegativeFloat = 0.0
    """Weight of the penalty that keeps the discriminator from running away (`objectives.lecam`); 0 for none."""


class Objectives(Strict):
    """What shapes the latents and sharpens the reconstructions, beside the terms of `LossConfig`."""

    noise: NoiseSettings | None = None
    masking: MaskingSettings | None = None
    alignment: AlignmentSettings | None = None
    equivariance: EquivarianceSettings | None = None
    local_correlation: LocalCorrelationSettings | None = None
    low_pass: LowPassSettings | None = None
    adversarial: AdversarialSettings | None = None
