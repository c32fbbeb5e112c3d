"""Every choice of the sampler of masked generators in one validated table; the defaults are eMIGM's with 16 steps."""

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mind.baselines.masked_config import MaskSchedule
from mind.guidance_interval import GuidanceInterval


class MaskedSamplerSettings(GuidanceInterval):
    """How a masked generator walks from all tokens masked to none (arXiv 2503.07197, algorithm and released settings).

    Step i of n goes from time t=1-i/n to s=1-(i+1)/n; t=1 is fully masked. Unknown fields and values raise `UserError`.
    """

    what: ClassVar[str] = "masked sampler settings"

    steps: PositiveInt = 16
    """Number of steps; the network is evaluated once in each, twice where it is guided."""
    schedule: MaskSchedule | None = None
    """Share of masked tokens over time; None for the one the model was trained with."""
    reveal: Literal["independent", "random", "confidence"] = "independent"
    """Which masked tokens are revealed: each by itself with probability (gamma_t-gamma_s)/gamma_t (eMIGM, MDM); or so many that
    ceil(l gamma_s) stay, at ``random`` (MAR) or those drawn with the most ``confidence`` (MaskGIT; codes only)."""
    confidence_noise: float = Field(4.5, ge=0, allow_inf_nan=False)
    """Gumbel noise on the log probability that ranks tokens by confidence; it falls linearly to 0 over the steps."""

    cfg_scale: float = Field(4.0, ge=0, allow_inf_nan=False)
    """Guidance scale w: unconditional + w (conditional - unconditional), of logits or predicted noise. With 1 the unconditional
    pass is not run."""
    cfg_t_min: float = Field(0.1, ge=0, le=1)
    """Guidance is on in steps whose end s lies in [cfg_t_min, cfg_t_max]; in the others w is 1."""
    cfg_t_max: float = Field(0.3, ge=0, le=1)
    """See ``cfg_t_min``."""
    cfg_schedule: Literal["constant", "linear"] = "constant"
    """``linear``: w grows with the share of revealed tokens, 1 + (w-1)(1-gamma_s) (MAR)."""

    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Codes: the logits are divided by it, 0 takes the likeliest code. Latents with ``head_sampler: ddpm``: multiplies the noise
    of every step. DPM-Solver has none."""
    head_sampler: Literal["dpm_solver", "ddpm"] = "dpm_solver"
    """How the diffusion head draws a token: DPM-Solver++ (eMIGM), or ancestral steps with learned variance (MAR)."""
    head_steps: PositiveInt = Field(8, le=1000)
    """Evaluations of the diffusion head for a token; MAR takes 100 with ddpm."""
    head_order: Literal[1, 2, 3] = 3
    """Of DPM-Solver++."""
    head_clip: PositiveFloat | None = 5.0
    """Limit of the data estimated in each step of the head, in standard deviations of the latents (static thresholding, arXiv
    2211.01095, section 4.3); None is off (released). The head predicts noise, and where there is little else an error of it
    counts 160 times in the data at the start of DPM-Solver, 20,000 times at that of ddpm. A head that has not learned the tails
    of the noise then leaves what it was trained on for good: after 300 steps of training on the embedded KL latents, samples
    deviate by 1.4 (DPM-Solver) and 1,600 (ddpm) instead of 1, with the limit by 1.16 and 0.99. Beyond 5 lie 0.03 % of the numbers
    of these latents."""


FAMILY_SAMPLERS: dict[str, dict[str, Any]] = {
    "emigm": {},
    "maskgit": {"reveal": "confidence", "steps": 8, "cfg_t_min": 0.0, "cfg_t_max": 1.0, "cfg_schedule": "linear"},
    "mar": {
        "schedule": "cosine", "reveal": "random", "steps": 64, "cfg_scale": 2.9, "cfg_t_min": 0.0, "cfg_t_max": 1.0,
        "cfg_schedule": "linear", "head_sampler": "ddpm", "head_steps": 100,
    },
    "mdm": {"cfg_t_min": 0.0, "cfg_t_max": 1.0},
}  # fmt: skip
"""Settings that suit each family of `masked_config.FAMILIES`, as differences from the defaults.

MaskGIT (arXiv 2202.04200): 8 steps of the cosine schedule, confidence with annealed noise. MAR (arXiv 2406.11838): its published
settings. MDM reveals like eMIGM, along the schedule it was trained with (arXiv 2406.04329). Guidance of MaskGIT and MDM, which
their papers do not have, is ours."""
