"""What a tokenizer is trained to minimise: reconstruction, the terms of its bottleneck, and the objectives switched on."""

import torch
from torch import Tensor, nn

from latentlab.errors import UserError
from latentlab.randomness import generator
from latentlab.runtime import quick_bfloat16
from latentlab.tokenizers.config import TrainConfig
from latentlab.tokenizers.objectives.adaptive import gradient_ratio
from latentlab.tokenizers.objectives.adversarial import tokenizer_loss
from latentlab.tokenizers.objectives.alignment import Alignment
from latentlab.tokenizers.objectives.draws import BatchGenerator
from latentlab.tokenizers.objectives.equivariance import draw_transform, smallest_side, transformed_pair
from latentlab.tokenizers.objectives.latent_masking import LatentMasking
from latentlab.tokenizers.objectives.latent_noise import LatentNoise
from latentlab.tokenizers.objectives.local_correlation import correlation_loss
from latentlab.tokenizers.objectives.low_pass import draw_band, low_pass
from latentlab.tokenizers.objectives.patch_discriminator import PatchDiscriminator
from latentlab.tokenizers.objectives.reconstruction import Reconstruction
from latentlab.tokenizers.objectives.vision_networks import open_vision_maps, vision_width
from latentlab.tokenizers.trainable import TrainableTokenizer, TrainOutput


class TokenizerLoss(nn.Module):
    """The weighted sum of all terms of a training step, and the tokenizer they are of.

    Attributes:
        model: the tokenizer.
        alignment: trained beside it, where latents are aligned.
        discriminator: looked at where there is one, trained elsewhere, and no part of this module.
    """

    def __init__(self, config: TrainConfig, model: TrainableTokenizer, discriminator: nn.Module | None = None) -> None:
        """Open the frozen networks.

        Raises:
            UserError: weights that are not on this machine, an objective that does not fit the latents, or the weight of a term
                that the tokenizer does not have or cannot do without.
        """
        super().__init__()
        self.config, self.model = config, model
        self.reconstruction = Reconstruction(config.loss)
        self._discriminator = [discriminator] if discriminator is not None else []  # in a list, it is no submodule
        self._check_terms()
        wanted = config.objectives
        if model.spec.layout != "grid" and (
            wanted.alignment or wanted.equivariance or wanted.local_correlation or wanted.low_pass
        ):
            raise UserError(
                "objectives alignment, equivariance, local_correlation and low_pass need latents on a grid: "
                f"'{config.name}' has a sequence"
            )
        self.alignment: Alignment | None = None
        if wanted.alignment is not None:
            self.vision = open_vision_maps(wanted.alignment.network)
            width = vision_width(wanted.alignment.network)
            self.alignment = Alignment(wanted.alignment, model.spec.channels, width)
        self._changes: dict[str, LatentNoise | LatentMasking] = {}
        if wanted.noise is not None:
            self._changes["latent_noise"] = LatentNoise(wanted.noise)
        if wanted.masking is not None:
            self._changes["latent_masking"] = LatentMasking(wanted.masking)

    def check_side(self, side: int) -> None:
        """Refuse images of a side that what judges reconstructions, of parts of them too, cannot read.

        Raises:
            UserError: as the summary says.
        """
        wanted = self.config.objectives
        smallest = side
        if wanted.equivariance is not None:
            pixels = self.model.spec.downsampling or 1
            smallest = smallest_side(wanted.equivariance, side // pixels) * pixels
        self.reconstruction.check_side(smallest)
        if wanted.adversarial is not None and wanted.adversarial.kind == "patch":
            PatchDiscriminator.check_side(wanted.adversarial.layers, side)

    def _check_terms(self) -> None:
        weights, model = self.config.loss, self.model
        for name in ("kl", "codebook", "commitment", "entropy"):
            if getattr(weights, name) and name not in model.loss_terms:
                known = ", ".join(model.loss_terms) or "none"
                raise UserError(
                    f"loss.{name} has a weight, but '{self.config.name}' has no such term (it has {known}): set it to 0"
                )
            if name in model.needed_terms and not getattr(weights, name):
                raise UserError(
                    f"'{self.config.name}' learns its {name} by loss.{name} alone: give it a weight above 0"
                )

    def forward(self, images: Tensor, step: int, first: int, total: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss, its unweighted terms, and the reconstructions, the last two without gradients.

        Args:
            images: [n,3,H,W] in [-1,1].
            step: optimiser step, from 0; random numbers are a function of it and of the place of an image in the batch.
            first: place in the batch of the first image.
            total: images of the whole batch.
        """
        output = self._decoded(images, (step, first, total))
        found = WeightedSum()
        for name, value in self.reconstruction(output.reconstruction, images).items():
            found.add(name, value, getattr(self.config.loss, name))
        found.take_reference()
        for name, value in output.losses.items():
            if getattr(self.config.loss, name):
                found.add(name, value.float(), getattr(self.config.loss, name))
        self._shape_latents(found, output.latents, images)
        self._reconstruct_again(found, output.latents, images, step)
        self._judge(found, output.reconstruction, step)
        loss = found.total()
        shown = {name: value.detach() for name, value in found.terms.items()}
        return loss, {"loss": loss.detach(), **shown}, output.reconstruction.detach()

    def _decoded(self, images: Tensor, place: tuple[int, int, int]) -> TrainOutput:
        """Return the pass through the tokenizer, decoded from latents with noise and masks where these are switched on."""
        with self._autocast(images):
            found = self.model.encode_train(images, self._draws("noise", place))
            decoded = found.latents
            for name, change in self._changes.items():
                decoded = change(decoded, self._draws(name, place))
            return TrainOutput(self.model.reconstruct(decoded), found.latents, found.losses, found.indices)

    def _shape_latents(self, found: "WeightedSum", latents: Tensor, images: Tensor) -> None:
        """Add the terms that latents have by themselves, or with the features of a vision network."""
        wanted, layer = self.config.objectives, self.model.last_encoder_weight
        if wanted.alignment is not None and self.alignment is not None:
            with torch.no_grad():
                features = self.vision(images, (latents.shape[2], latents.shape[3]))
            parts = self.alignment(latents, features)
            found.terms |= parts
            settings = wanted.alignment
            found.add_pulling(
                "alignment", self.alignment.total(parts), settings.weight, layer if settings.adaptive else None
            )
        if wanted.local_correlation is not None:
            lacking = correlation_loss(latents, wanted.local_correlation.threshold)
            weight, adaptive = wanted.local_correlation.weight, wanted.local_correlation.adaptive
            found.add_pulling("local_correlation", lacking, weight, layer if adaptive else None)

    def _reconstruct_again(self, found: "WeightedSum", latents: Tensor, images: Tensor, step: int) -> None:
        """Add the reconstructions from latents that were transformed or low-passed as the images were."""
        wanted, seed = self.config.objectives, self.config.seed
        if wanted.equivariance is not None:
            transform = draw_transform(wanted.equivariance, latents.shape[-1], generator(seed, "equivariance", step))
            again = self._reconstruction_of(*transformed_pair(latents, images, transform))
            found.add("equivariance", again, wanted.equivariance.weight)
        if wanted.low_pass is not None:
            band = draw_band(wanted.low_pass, latents.shape[-1], generator(seed, "low_pass", step))
            again = self._reconstruction_of(low_pass(latents, band), low_pass(images, band))
            found.add("low_pass", again, wanted.low_pass.weight)

    def _reconstruction_of(self, latents: Tensor, images: Tensor) -> Tensor:
        """Return the weighted distance of what ``latents`` decode to from ``images``."""
        with self._autocast(images):
            reconstruction = self.model.reconstruct(latents)
        terms = self.reconstruction(reconstruction, images)
        return torch.stack([getattr(self.config.loss, name) * value for name, value in terms.items()]).sum()

    def _judge(self, found: "WeightedSum", reconstruction: Tensor, step: int) -> None:
        """Add what the discriminator says."""
        settings = self.config.objectives.adversarial
        if settings is None or step < settings.start:
            return
        value = tokenizer_loss(self._discriminator[0](reconstruction.float()))
        layer = self.model.last_decoder_weight if settings.adaptive else None
        found.add_pulling("adversarial", value, settings.weight, layer)

    def _draws(self, stream: str, place: tuple[int, int, int]) -> BatchGenerator:
        step, first, total = place
        return BatchGenerator.of(generator(self.config.seed, stream, step), first, total)

    def _autocast(self, images: Tensor) -> torch.autocast:
        """Return bfloat16 where it is asked for and the device is quick in it."""
        wanted = self.config.precision == "bfloat16" and quick_bfloat16(images.device)
        return torch.autocast(images.device.type, torch.bfloat16, enabled=wanted)


class WeightedSum:
    """The terms of a training step and their weighted sum.

    Attributes:
        terms: unweighted, by name; with ``NAME_weight`` of those whose weight follows gradients.
    """

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self._pieces: list[Tensor] = []

    def add(self, name: str, value: Tensor, weight: float | Tensor) -> None:
        """Add ``weight * value``."""
        self.terms[name] = value
        self._pieces.append(weight * value)

    def take_reference(self) -> None:
        """Let the sum so far, the reconstruction, be what others are balanced against."""
        self._reference = self.total()

    def add_pulling(self, name: str, value: Tensor, weight: float, parameter: Tensor | None) -> None:
        """Add ``value``; where a ``parameter`` is given it pulls there ``weight`` times as hard as the reconstruction."""
        if parameter is None:
            self.add(name, value, weight)
            return
        balanced = weight * gradient_ratio(self._reference, value, parameter)
        self.terms[f"{name}_weight"] = balanced
        self.add(name, value, balanced)

    def total(self) -> Tensor:
        """Return the sum so far."""
        return torch.stack(self._pieces).sum()
