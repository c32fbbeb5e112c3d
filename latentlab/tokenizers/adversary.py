"""The other player of the adversarial game while a tokenizer trains: a discriminator with an optimiser of its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.parallel import Workers
from latentlab.ranks import Ranks
from latentlab.tokenizers.objectives.adversarial import build_discriminator, discriminator_loss
from latentlab.tokenizers.objectives.settings import AdversarialSettings


class DiscriminatorLoss(nn.Module):
    """What the discriminator minimises."""

    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, images: Tensor, made: Tensor) -> Tensor:
        """Return the hinge loss of images and reconstructions, [n,3,H,W] in [-1,1]."""
        real, other = self.discriminator(torch.cat([images, made])).chunk(2)
        return discriminator_loss(real, other)


class Adversary:
    """A discriminator and its training.

    Attributes:
        discriminator: images [n,3,H,W] -> scores.
    """

    def __init__(self, settings: AdversarialSettings, ranks: Ranks, device: torch.device) -> None:
        """Build it with fresh weights.

        Raises:
            UserError: the weights of its frozen network are not on this machine.
        """
        self.settings = settings
        self.discriminator = build_discriminator(settings).to(device)
        trained = {name: p for name, p in self.discriminator.named_parameters() if p.requires_grad}
        self._trained = trained
        self._workers = Workers(DiscriminatorLoss(self.discriminator), [], "ddp", ranks, device)
        self._optimiser = torch.optim.Adam(trained.values(), betas=settings.betas)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Let gradients pass through the discriminator, not into its weights."""
        for parameter in self._trained.values():
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._trained.values():
                parameter.requires_grad_(True)

    def train_step(self, parts: Sequence[tuple[Tensor, Tensor]], rate: float) -> Tensor:
        """Take a step on parts (images, reconstructions) of a batch; return the loss, its mean over parts and ranks."""
        self._optimiser.zero_grad(set_to_none=True)
        losses = []
        for i, (images, made) in enumerate(parts):
            with self._workers.accumulating(i + 1 < len(parts)):
                loss = self._workers.objective(images, made.float()) / len(parts)
                loss.backward()
            losses.append(loss.detach())
        self._optimiser.param_groups[0]["lr"] = self.settings.learning_rate or rate
        self._optimiser.step()
        return self._workers.mean(torch.stack(losses).sum())

    def state(self) -> dict[str, Any]:
        """Return all that training continues from."""
        weights = {name: parameter.detach() for name, parameter in self._trained.items()}
        return {"weights": weights, "optimiser": self._optimiser.state_dict()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        for name, parameter in self._trained.items():
            parameter.copy_(state["weights"][name])
        self._optimiser.load_state_dict(state["optimiser"])
