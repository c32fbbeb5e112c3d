"""The sampler of masked generators: from all tokens masked to none, in steps that each reveal some of them for good.

eMIGM (arXiv 2503.07197), eq. 6: from time t to s < t a masked token stays so with probability gamma_s/gamma_t, else it is drawn
from what the network says about it; revealed tokens never change. Time: t=1 is fully masked. Shapes: n samples, l tokens, d
numbers of a continuous token, h width, m tokens to draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlab.errors import UserError
from mind import noise
from mind.baselines.categorical_head import CategoricalHead
from mind.baselines.diffusion_head import Condition, DiffusionHead
from mind.baselines.masked import masked_count, masked_share, ranks
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.masked_settings import MaskedSamplerSettings
from mind.labels import checked_labels, checked_numbers

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after every step with its number, the tokens [n,l] or [n,l,d], and which are still masked [n,l]."""


@dataclass(frozen=True)
class MaskedSamples:
    """What `sample_masked` returns.

    Attributes:
        latents: codes, int64 [n,l], or latents [n,c,h,w] or [n,m,c].
        trajectory: tokens after every step, [steps,n,l] or [steps,n,l,d], 0 where masked; None if not asked for.
        masked: which tokens were masked after every step, bool [steps,n,l]; None if not asked for.
        evaluations: how often the network read each sample; a guided step counts 2. The head is not counted.
        times: of the first state and after every step, float64 [steps+1]; 1 is fully masked.
    """

    latents: Tensor
    trajectory: Tensor | None
    masked: Tensor | None
    evaluations: int
    times: Tensor


@torch.no_grad()
def sample_masked(
    model: MaskedTransformer,
    labels: Tensor | Sequence[int],
    settings: MaskedSamplerSettings | None = None,
    seed: int = 0,
    first_index: int = 0,
    indices: Tensor | None = None,
    return_trajectory: bool = False,
    on_step: OnStep | None = None,
) -> MaskedSamples:
    """Sample latents, all labels as one batch, on the model's device.

    Sample i depends on (seed, i, its label) only, up to rounding in the network: split the labels among batches and ranks at will
    and say with ``first_index`` or ``indices`` which samples they are.

    Args:
        model: a masked generator.
        labels: class ids [n]; `MaskedConfig.null_class` for no class.
        settings: default: eMIGM's with 16 steps.
        seed: of all random numbers.
        first_index: number of the first sample; the others follow it.
        indices: numbers of the samples, int64 [n], instead of consecutive ones.
        return_trajectory: keep tokens and masks of every step.
        on_step: called after every step.

    Raises:
        UserError: labels that are not classes of the model, ``indices`` of another shape, confidence without codes, or more steps
            than tokens where each step must reveal one.
    """
    settings = settings or MaskedSamplerSettings()
    classes = checked_labels(labels, model.config.null_class).to(model.device)
    numbers = checked_numbers(indices, first_index, len(classes)).to(model.device)
    walk = _Walk(model, settings, classes, numbers, seed)
    history: list[tuple[Tensor, Tensor]] = []
    for step in range(settings.steps):
        walk.advance(step)
        if return_trajectory:
            history.append((walk.tokens, walk.masked))
        if on_step is not None:
            on_step(step, walk.tokens, walk.masked)
    return MaskedSamples(
        latents=model.to_latents(walk.tokens),
        trajectory=torch.stack([tokens for tokens, _ in history]) if return_trajectory else None,
        masked=torch.stack([masked for _, masked in history]) if return_trajectory else None,
        evaluations=walk.evaluations,
        times=walk.times,
    )


def guidance_scale(settings: MaskedSamplerSettings, s: float, share: float) -> float:
    """Return the guidance scale w of a step; 1 means that the unconditional pass is not needed.

    Args:
        settings: scale, its schedule and interval.
        s: end of the step; 0 is data.
        share: gamma_s, the share of tokens still masked then.
    """
    if not settings.cfg_t_min <= s <= settings.cfg_t_max:
        return 1.0
    if settings.cfg_schedule == "linear":
        return 1 + (settings.cfg_scale - 1) * (1 - share)
    return settings.cfg_scale


def counts_after(tokens: int, shares: Tensor) -> list[int]:
    """Return how many tokens are masked after each step where that is fixed: ceil(l gamma_s), at least one fewer each time.

    Args:
        tokens: l, not fewer than steps.
        shares: gamma at the times of the sampler, [steps+1]; the last is 0.
    """
    goals, counts, left = masked_count(tokens, shares[1:]).tolist(), [], tokens
    for step, goal in enumerate(goals):
        left = max(min(goal, left - 1), len(goals) - 1 - step)  # one for each step that is to come
        counts.append(left)
    return counts


class _Walk:
    """The steps of one batch: its tokens, which are masked, and how many network evaluations they took."""

    def __init__(
        self, model: MaskedTransformer, settings: MaskedSamplerSettings, labels: Tensor, numbers: Tensor, seed: int
    ) -> None:
        config, n = model.config, len(labels)
        _check_reveal(model, settings)
        self._model, self._settings, self._labels, self._numbers, self._seed = model, settings, labels, numbers, seed
        self.times = torch.arange(settings.steps, -1, -1, dtype=torch.float64) / settings.steps
        self._shares = masked_share(settings.schedule or config.schedule, self.times)
        self._counts = counts_after(config.length, self._shares) if settings.reveal != "independent" else []
        self._order = ranks(self._uniform("order", 0))  # places are revealed from the last rank to the first
        self.masked = torch.ones(n, config.length, dtype=torch.bool, device=model.device)
        if config.vocab_size is None:
            self.tokens = torch.zeros(n, config.length, config.token_width, device=model.device)
        else:
            self.tokens = torch.zeros(n, config.length, dtype=torch.int64, device=model.device)
        self.evaluations = 0

    def advance(self, step: int) -> None:
        """Reveal the tokens of a step."""
        weight = guidance_scale(self._settings, float(self.times[step + 1]), float(self._shares[step + 1]))
        z, null = self._hidden(weight)
        if self._settings.reveal == "confidence":
            self._reveal_most_confident(step, z, null, weight)
            return
        stay = self.masked & self._stay(step)
        drawn = self.masked & ~stay
        given = Condition(z[drawn], None if null is None else null[drawn], weight)
        if drawn.any():
            self.tokens = self.tokens.clone()
            self.tokens[drawn] = self._draw(step, given, drawn)
        self.masked = stay

    def _hidden(self, weight: float) -> tuple[Tensor, Tensor | None]:
        """Return what the network says, [n,l,h], and without classes if that is needed."""
        model, labels = self._model, self._labels
        self.evaluations += 1 if weight == 1 else 2
        if weight == 1:
            return model(self.tokens, self.masked, labels), None
        both = torch.cat([labels, torch.full_like(labels, model.config.null_class)])
        z, null = model(torch.cat([self.tokens] * 2), torch.cat([self.masked] * 2), both).chunk(2)
        return z, null

    def _stay(self, step: int) -> Tensor:
        """Return which of the masked tokens stay masked in a step, [n,l]."""
        if self._settings.reveal == "random":
            return self._order < self._counts[step]
        before, after = (float(share) for share in self._shares[step : step + 2])
        return self._uniform("reveal", step) < after / before

    def _draw(self, step: int, given: Condition, drawn: Tensor) -> Tensor:
        """Return tokens [m] or [m,d] for the places ``drawn`` [n,l]."""
        codes = isinstance(self._model.head, CategoricalHead)
        return self._draw_codes(step, given, drawn)[0] if codes else self._draw_continuous(step, given, drawn)

    def _draw_codes(self, step: int, given: Condition, drawn: Tensor) -> tuple[Tensor, Tensor]:
        head = self._model.head
        assert isinstance(head, CategoricalHead)
        with self._model.autocast():
            return head.sample(given, self._settings.temperature, self._uniform("tokens", step)[drawn])

    def _draw_continuous(self, step: int, given: Condition, drawn: Tensor) -> Tensor:
        """Return tokens [m,d]; without autocast: a rounding error of predicted noise counts 160 times in the data."""
        head, shape = self._model.head, self.tokens.shape[1:]
        assert isinstance(head, DiffusionHead)

        def fresh(draw: int) -> Tensor:
            return noise.normal(self._seed, f"masked/head/{draw}", self._numbers, step, shape)[drawn]

        return head.sample(given, self._settings, fresh)

    def _reveal_most_confident(self, step: int, z: Tensor, null: Tensor | None, weight: float) -> None:
        """Draw a code for every masked token and keep those with the largest log probability plus noise (MaskGIT)."""
        given = Condition(z[self.masked], None if null is None else null[self.masked], weight)
        codes, log_probabilities = self._draw_codes(step, given, self.masked)
        gumbel = -torch.log(-torch.log(self._uniform("confidence", step)[self.masked]))
        scale = self._settings.confidence_noise * (1 - (step + 1) / self._settings.steps)
        confidence = torch.full(self.masked.shape, torch.inf, device=z.device)  # revealed tokens stay so
        confidence[self.masked] = log_probabilities + scale * gumbel
        stay = ranks(confidence) < self._counts[step]
        proposed = self.tokens.clone()
        proposed[self.masked] = codes
        self.tokens = torch.where(self.masked & ~stay, proposed, self.tokens)
        self.masked = stay

    def _uniform(self, purpose: str, step: int) -> Tensor:
        """Return uniform numbers of each sample, [n,l]."""
        return noise.uniform(self._seed, f"masked/{purpose}", self._numbers, step, (self._model.config.length,))


def _check_reveal(model: MaskedTransformer, settings: MaskedSamplerSettings) -> None:
    """Raise `UserError` when the model cannot be revealed as ``settings`` say."""
    tokens = model.config.length
    if settings.reveal == "confidence" and model.config.vocab_size is None:
        raise UserError("reveal 'confidence' ranks codes, and the model is of continuous latents: choose 'random'")
    if settings.reveal != "independent" and settings.steps > tokens:
        raise UserError(
            f"reveal '{settings.reveal}' needs a token for each step, and {settings.steps} steps are more than {tokens}: "
            "lower steps"
        )
