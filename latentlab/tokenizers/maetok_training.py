"""MAETok in training (Chen et al. 2025, arXiv 2502.03444): hidden patches, auxiliary decoders, then the decoder alone."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latentlab.latents import TokenizerSpec
from latentlab.tokenizers.architecture import read_architecture
from latentlab.tokenizers.auxiliary_targets import Target, hidden_error, open_target, target_channels
from latentlab.tokenizers.maetok import AUXILIARY, MAETok
from latentlab.tokenizers.maetok_initialisation import initialise_maetok
from latentlab.tokenizers.maetok_network import Encoder, TokenDecoder
from latentlab.tokenizers.maetok_training_architecture import MAETokTraining
from latentlab.tokenizers.masking import annealed_ratio, draw_hidden, hide, new_mask_token
from latentlab.tokenizers.trainable import TrainableTokenizer, TrainLatents
from latentlab.tokenizers.vision_transformer import ModulatedNorm


class MaskedEncoder(Encoder):
    """An encoder from which patches can be hidden.

    Attributes:
        mask_token: stands in for them, [1,1,w].
    """

    def __init__(self, config: MAETokTraining) -> None:
        super().__init__(config)
        self.mask_token = new_mask_token(config.encoder_transformer.width)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return [n,l,w]; patches that are ``hidden``, bool [n,p], have no influence on it, the latent tokens are all there."""
        patches = self.model.patch_embed(images)
        return self.gather(patches if hidden is None else hide(patches, hidden, self.mask_token))


class TrainableMAETok(MAETok, TrainableTokenizer):
    """A MAETok with what only training needs; without auxiliary decoders its weights are a published file.

    The auxiliary decoder of a target is ``decoder_NAME``, between ``post_quant_conv_NAME`` and ``to_pixel_NAME``.

    Attributes:
        architecture: the configuration it was built from.
        hidden_ratios: smallest and largest share of hidden patches at this step.
    """

    architecture: MAETokTraining
    encoder: MaskedEncoder

    TRAINING_ONLY: ClassVar[tuple[str, ...]] = AUXILIARY

    def __init__(self, architecture: MAETokTraining, spec: TokenizerSpec) -> None:
        super().__init__(architecture, spec)
        self.encoder = MaskedEncoder(architecture)
        self.hidden_ratios = (architecture.enc_token_drop, architecture.enc_token_drop_max)
        self._opened: dict[str, Target] = {}  # no modules of this one: nothing of them is trained, averaged or written
        for target in self.targets:
            self._add_auxiliary(target)
        initialise_maetok(self, architecture.rope_theta)
        self._freeze_unread()
        if architecture.stage == "decoder":
            self.encoder.requires_grad_(False)
            self.quant_conv.requires_grad_(False)
            self.before_step(0)

    @property
    def targets(self) -> tuple[str, ...]:
        """What is predicted beside pixels."""
        return self.architecture.targets if self.architecture.stage == "mask" else ()

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """What auxiliary decoders miss, where there are any."""
        return ("auxiliary",) if self.targets else ()

    def _add_auxiliary(self, target: str) -> None:
        config, name = self.architecture, _plain(target)
        size, channels = config.target_transformer, target_channels(target, config.enc_patch_size)
        self.add_module(f"post_quant_conv_{name}", nn.Linear(config.codebook_embed_dim, size.width))
        self.add_module(f"decoder_{name}", TokenDecoder(config, size))
        self.add_module(f"to_pixel_{name}", nn.Linear(size.width, channels))

    def _freeze_unread(self) -> None:
        """Leave the last modulations as they are: they act on latent tokens, which nobody reads after the last block."""
        for module in self.modules():
            if isinstance(module, ModulatedNorm):
                module.requires_grad_(False)

    def before_step(self, step: int) -> None:
        """Set the share of hidden patches for training step ``step``, from 0; in stage ``mask`` all steps are alike."""
        config = self.architecture
        if config.stage == "decoder":
            ratio = annealed_ratio(step, config.anneal_steps, config.enc_token_drop_max)
            self.hidden_ratios = (ratio, ratio)

    def encode_train(self, images: Tensor, generator: torch.Generator | None = None) -> TrainLatents:
        """Return latents [n,l,c] of what the encoder may see of images [n,3,S,S] in [-1,1].

        ``auxiliary`` is the sum over targets of the error on hidden patches (`hidden_error`).

        Args:
            images: float [n,3,S,S] in [-1,1].
            generator: source of the hidden patches.

        Raises:
            UserError: images of another size; a target's network is not on this machine.
        """
        images = self.checked(images)
        patches = (self.architecture.image_size // self.architecture.enc_patch_size) ** 2
        hidden = draw_hidden(len(images), patches, self.hidden_ratios, generator).to(images.device)
        latents = self.quant_conv(self.encoder(images, hidden))
        errors = [hidden_error(self.predict(t, latents), self._wanted(t, images), hidden) for t in self.targets]
        losses = {"auxiliary": torch.stack(errors).sum()} if errors else {}
        return TrainLatents(latents, losses)

    def predict(self, target: str, latents: Tensor) -> Tensor:
        """Return what an auxiliary decoder makes of latents [n,l,c], [n,p,d]."""
        name = _plain(target)
        embedded = self.get_submodule(f"post_quant_conv_{name}")(latents)
        decoder = self.get_submodule(f"decoder_{name}")
        assert isinstance(decoder, TokenDecoder)
        predicted: Tensor = self.get_submodule(f"to_pixel_{name}")(decoder.tokens(latents, embedded))
        return predicted

    @torch.no_grad()
    def _wanted(self, target: str, images: Tensor) -> Tensor:
        if target not in self._opened:
            self._opened[target] = open_target(target, self.architecture.enc_patch_size, images.device)
        with torch.autocast(images.device.type, enabled=False):
            return self._opened[target](images.float())

    @property
    def last_encoder_weight(self) -> Tensor:
        """The parameter at which adaptive weights of losses on the latents are measured."""
        return self.quant_conv.weight

    @property
    def last_decoder_weight(self) -> Tensor:
        """The parameter at which adaptive weights of losses on the images are measured."""
        return self.decoder.to_pixel.model.weight


def _plain(target: str) -> str:
    return target.replace("-", "_").replace(".", "_")


def build_maetok(architecture: Mapping[str, Any], *, name: str = "custom", release: str = "custom") -> TrainableMAETok:
    """Build a MAETok with fresh weights, to be trained.

    Args:
        architecture: fields of `MAETokTraining`.
        name: recorded in the spec.
        release: recorded in the spec.

    Raises:
        UserError: an unknown field, or a value that cannot be.
    """
    config = read_architecture({"dec_cls_token": False, **architecture}, MAETokTraining)
    spec = TokenizerSpec(
        name=name,
        release=release,
        kind="continuous",
        layout="sequence",
        channels=config.codebook_embed_dim,
        shift=(config.vq_mean,),
        scale=(1 / config.vq_std,),
    )
    return TrainableMAETok(config, spec)
