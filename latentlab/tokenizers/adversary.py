"""The other player of the adversarial game while a tokenizer trains: a discriminator with an optimiser of its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentlab.parallel import Workers
from latentlab.ranks import Ranks
from latentlab.tokenizers.objectives.adversarial import build_discriminator, discriminator_loss
from latentlab.tokenizers.objectives.lecam import ScoreAverages, lecam_penalty
from latentlab.tokenizers.objectives.settings import AdversarialSettings


class DiscriminatorLoss(nn.Module):
    """What the discriminator minimises."""

    def __init__(self, discriminator: nn.Module, lecam: float) -> None:
        """Take the discriminator and the weight of its LeCam penalty, 0 for none."""
        super().__init__()
        self.discriminator, self._lecam = discriminator, lecam

    def forward(self, images: Tensor, made: Tensor, averages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of images and reconstructions, and their mean scores, [2] without a gradient.

        Args:
            images: [n,3,H,W] in [-1,1].
            made: reconstructions, [n,3,H,W].
            averages: of the scores of images and of reconstructions in earlier steps, [2].
        """
        real, other = self.discriminator(torch.cat([images, made])).chunk(2)
        loss = discriminator_loss(real, other)
        if self._lecam:
            loss = loss + self._lecam * lecam_penalty(real, other, averages)
        return loss, torch.stack([real.detach().float().mean(), other.detach().float().mean()])


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
        self._averages = ScoreAverages(device)
        self._scores = self._averages.values  # of the step whose gradients were taken last
        self._workers = Workers(DiscriminatorLoss(self.discriminator, settings.lecam), [], "ddp", ranks, device)
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

    def take_gradients(self, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Compute and clip the gradients of a step; no weight changes yet.

        Args:
            parts: images and reconstructions of a batch, [n,3,H,W] in [-1,1].

        Returns:
            The loss, its mean over parts and ranks; and the norm of the gradients before they were clipped, on every rank
            the same.
        """
        self._optimiser.zero_grad(set_to_none=True)
        losses, scores = [], []
        for i, (images, made) in enumerate(parts):
            with self._workers.accumulating(i + 1 < len(parts)):
                loss, means = self._workers.objective(images, made.float(), self._averages.values)
                (loss / len(parts)).backward()
            losses.append(loss.detach() / len(parts))
            scores.append(means)
        self._scores = self._workers.mean(torch.stack(scores).mean(0))
        norm = nn.utils.clip_grad_norm_(self._trained.values(), self.settings.clip_norm)
        return self._workers.mean(torch.stack(losses).sum()), norm

    def step(self, rate: float) -> None:
        """Change the weights by the gradients of `take_gradients`, at the tokenizer's ``rate`` unless there is another."""
        self._optimiser.param_groups[0]["lr"] = self.settings.learning_rate or rate
        self._optimiser.step()
        self._averages.update(self._scores)

    def state(self) -> dict[str, Any]:
        """Return all that training continues from."""
        weights = {name: parameter.detach() for name, parameter in self._trained.items()}
        return {"weights": weights, "optimiser": self._optimiser.state_dict(), "scores": self._averages.values}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        for name, parameter in self._trained.items():
            parameter.copy_(state["weights"][name])
        self._optimiser.load_state_dict(state["optimiser"])
        self._averages.values.copy_(state["scores"])
