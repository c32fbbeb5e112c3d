"""What the samplers of continuous latents take and give, whatever walks from noise to data.

Shapes: n samples, then c channels and an h w grid, or l tokens and c channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from latentlab.errors import UserError
from mind import noise
from mind.baselines.guidance import LatentModel
from mind.labels import checked_labels, checked_numbers

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after every step with its number, the state and the estimate of the data, both like the latents."""


@dataclass(frozen=True)
class LatentSamples:
    """What `sample_flow` and `sample_ddpm` return.

    Attributes:
        latents: [n,c,h,w] or [n,l,c], normalised as those the model was trained on.
        start: the first state, which is the noise.
        trajectory: states after every step, [steps,n,...], or None if not asked for; the last is ``latents``.
        evaluations: how often the network read each sample; a guided evaluation counts 2.
        times: of the first state and after every step, float64 [steps+1]; the sampler says what it counts.
    """

    latents: Tensor
    start: Tensor
    trajectory: Tensor | None
    evaluations: int
    times: Tensor


@dataclass(frozen=True)
class Batch:
    """The samples of one call, checked and on the model's device.

    Attributes:
        labels: class ids, int64 [n].
        numbers: of the samples, int64 [n]; noise is a function of them.
        start: the first state [n,...].
        seed: of all random numbers.
    """

    labels: Tensor
    numbers: Tensor
    start: Tensor
    seed: int

    def fresh(self, step: int) -> Tensor:
        """Return new noise of a step, N(0,I), like the states."""
        shape = self.start.shape[1:]
        return noise.normal(self.seed, "sampler/fresh/1", self.numbers, step, shape).to(self.start)


def checked_batch(
    model: LatentModel,
    labels: Tensor | Sequence[int],
    given: Tensor | None,
    seed: int,
    first_index: int,
    indices: Tensor | None,
) -> Batch:
    """Return the samples of one call.

    Args:
        model: says shape, classes and device.
        labels: class ids [n].
        given: noise of the first state, instead of drawn; its precision becomes that of the states.
        seed: of all random numbers.
        first_index: number of the first sample.
        indices: numbers of the samples [n], instead of consecutive ones.

    Raises:
        UserError: labels that are not classes of the model, or noise or indices of another shape.
    """
    config, device = model.config, model.device
    classes = checked_labels(labels, config.null_class).to(device)
    count = len(classes)
    numbers, shape = checked_numbers(indices, first_index, count).to(device), config.latent_shape
    if given is not None and given.shape != (count, *shape):
        raise UserError(f"noise must have shape {[count, *shape]}, got {list(given.shape)}")
    start = noise.normal(seed, "sampler/initial", numbers, 0, shape) if given is None else given.to(device)
    return Batch(classes, numbers, start, seed)
