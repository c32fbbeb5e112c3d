"""What training a MAETok reads beside its shape, under the names of the published configuration. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from latentlab.tokenizers.maetok_architecture import MAETokArchitecture
from latentlab.tokenizers.sequence_architecture import TransformerSize


class MAETokTraining(MAETokArchitecture):
    """A MAETok to be trained, first whole with hidden patches, then its decoder alone (arXiv 2502.03444, sections 3.2, 3.3).

    Attributes:
        stage: ``mask``, with auxiliary targets; or ``decoder``: everything up to the latents is frozen, nothing but pixels is
            predicted, and the share of hidden patches falls linearly to 0.
        enc_token_drop: smallest share of hidden patches; each image draws its own.
        enc_token_drop_max: largest share, and the one from which stage ``decoder`` starts.
        rope_theta: ratio that the first frequencies of rotary positions span.
        targets: what auxiliary decoders predict of hidden patches in stage ``mask``: ``hog``, or networks of `auxiliary_targets`.
        target_depth: blocks of each auxiliary decoder.
        anneal_steps: steps after which stage ``decoder`` hides nothing.
    """

    stage: Literal["mask", "decoder"] = "mask"
    enc_token_drop: float = Field(default=0.4, ge=0, lt=1)
    enc_token_drop_max: float = Field(default=0.6, ge=0, lt=1)
    rope_theta: float = Field(default=10.0, gt=0)
    targets: tuple[str, ...] = ("hog",)
    target_depth: int = Field(default=3, gt=0)
    anneal_steps: int = Field(default=50_000, gt=0)

    @model_validator(mode="after")
    def _trainable(self) -> "MAETokTraining":
        if self.enc_token_drop > self.enc_token_drop_max:
            raise ValueError(
                f"enc_token_drop {self.enc_token_drop} must not exceed enc_token_drop_max {self.enc_token_drop_max}"
            )
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must differ, got {', '.join(self.targets)}")
        if self.enc_patch_size != self.dec_patch_size:
            raise ValueError(
                "training hides and predicts the same patches: enc_patch_size must be dec_patch_size, "
                f"got {self.enc_patch_size} and {self.dec_patch_size}"
            )
        return self

    @property
    def target_transformer(self) -> TransformerSize:
        """Size of an auxiliary decoder."""
        return TransformerSize(self.decoder_transformer.width, self.target_depth, self.decoder_transformer.heads)

    @property
    def published(self) -> dict[str, object]:
        """Fields of a published ``config.json``: the shape without what only this training knows."""
        ours = {"stage", "targets", "target_depth", "anneal_steps"}
        return self.model_dump(mode="json", exclude=ours, exclude_none=True)
