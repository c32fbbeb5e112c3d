"""Every choice of the sampler in one validated table; the defaults are those of the released evaluation run."""

from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mind.guidance_interval import GuidanceInterval
from mind.schedules import timesteps


class SamplerSettings(GuidanceInterval):
    """How `mind.sample` walks from noise to tokens.

    The defaults made the published 50,000 samples of MIND-B on GigaTok tokens (MIND, arXiv 2606.00094, table 3: FID 2.06). They
    come from the released evaluation code, which wins over the paper's text where the two differ; the fields say so. Step i of n
    has progress i/n. Unknown fields and values raise `UserError`.
    """

    what: ClassVar[str] = "sampler settings"

    # Times
    steps: PositiveInt = 250
    """Number of steps."""
    schedule: str = "linear"
    """Spacing of the times, a name of `mind.timesteps` with its suffixes: linear, cosine, shifted_cosine, mid_dense, ..."""
    timestep_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Times are computed in this; bfloat16 repeats some. ``auto``: bfloat16 for weights whose rotary tables are (the released
    ones), float32 for others."""
    time_convention: Literal["data", "noise"] = "data"
    """What time 1 is where times go in or come out (``cfg_t_min`` and ``cfg_t_max`` with ``interval_axis: t``,
    `Samples.times`): ``data`` as everywhere in MIND, ``noise`` for the noise time 1-t of the guidance literature."""
    init_mode: Literal["token1", "zero_anchor", "pure_noise"] = "token1"
    """First state: ``token1`` diffuses the embedding of token 1 at all positions to the first time (released);
    ``zero_anchor`` leaves that embedding out; ``pure_noise`` is K1 times the noise (paper)."""

    # Guidance
    cfg_scale: float = Field(3.0, ge=0, allow_inf_nan=False)
    """Guidance scale w: unconditional + w (conditional - unconditional). With 1 the unconditional pass is not run."""
    cfg_t_min: float = Field(0.2, ge=0, le=1)
    """Guidance begins here on ``interval_axis``, inclusive; before it, w is 1."""
    cfg_t_max: float = Field(0.6, ge=0, le=1)
    """Guidance ends here on ``interval_axis``, inclusive; after it, w is 1."""
    interval_axis: Literal["progress", "t"] = "progress"
    """What ``cfg_t_min`` and ``cfg_t_max`` count: the progress i/n (released), or the time of the step."""
    smooth_cfg: bool = False
    """Inside the interval w rises from 1 and falls back to 1 along half a sine."""
    cfg_guidance_clip: float = Field(2.0, ge=0, allow_inf_nan=False)
    """Largest root mean square, over the vocabulary, of a token's difference conditional - unconditional; 0 for no limit.
    Not in the paper. Logits only."""
    guidance_space: Literal["logits", "feature"] = "logits"
    """Where guidance is applied; table S-2 compares both."""
    feature_point: Literal["before_last_block", "after_last_block"] = "before_last_block"
    """Which hidden states ``guidance_space: feature`` combines; what follows runs with the conditional condition."""
    label_dropout: float = Field(0.0, ge=0, le=1)
    """Probability, at the first step, that a label is replaced by "no class" for that step; it falls linearly to 0 at
    ``label_dropout_end``. 0 is off (released). As in condition-annealed sampling (CADS, arXiv 2310.17347)."""
    label_dropout_end: float = Field(0.7, gt=0, le=1)
    """Progress at which ``label_dropout`` has ended."""

    # Token choice
    soft_ratio: float = Field(0.1, ge=0, le=1)
    """Share of steps at the beginning that use a weighted mean of embeddings (tau_1 of the paper)."""
    greedy_ratio: float = Field(0.1, ge=0, le=1)
    """Share of steps at the end that use the likeliest token (1 - tau_2 of the paper)."""
    soft_stage: Literal["raw_embedding", "sphere_subvector", "sphere_full", "sphere_mean"] = "raw_embedding"
    """The mean of the soft stage: of the raw table as it is (released), or of the table on the spheres, then every sub-vector
    to norm 1, or the whole vector to norm sqrt(d/g) (the paper's eq. 3). ``sphere_mean`` leaves it inside the spheres: over all
    tokens it is E[z | x], whose steps solve the ODE of the process (`mind.paths`). A model that sees the table on the spheres
    only learns nothing of the raw table's length: of the embedded weights it is 0.28 instead of 2."""
    soft_top_k: int = Field(20, ge=0)
    """How many of the largest logits the soft stage averages; ties with the last one count too; 0 for all."""
    strategy: Literal["topk_topp", "greedy", "nucleus"] = "topk_topp"
    """How the steps between draw tokens: top-k then top-p, the likeliest token, or top-p over the whole vocabulary."""
    temp: float = Field(0.99, ge=0, allow_inf_nan=False)
    """Temperature the logits are divided by before drawing."""
    top_k: PositiveInt = 100
    """How many of the likeliest tokens may be drawn."""
    top_p: float = Field(0.8, ge=0, le=1)
    """Likeliest tokens are kept up to the one that brings their total probability over this, inclusive."""
    topk_window: PositiveInt | Literal["full"] = 200
    """Tokens beyond the this many likeliest ones are cut before all else, so a larger ``top_k`` acts as this."""
    entropy: bool = False
    """Multiply the temperature of each token by 2.5 exp(-H/3) + 0.6, H the entropy of its probabilities in nats, colder where H
    is high (ARsample, arXiv 2510.09012). The released code turns it on when nothing is said; its published run has it off."""
    entropy_after_filter: bool = False
    """Measure H on what top-k and top-p leave (as ARsample does) instead of the whole vocabulary."""
    confidence_threshold: float = Field(1.1, gt=0, allow_inf_nan=False)
    """Logits of tokens whose largest probability exceeds this are divided by ``confidence_scale``; 1.1 is never."""
    confidence_scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    """See ``confidence_threshold``; 1 is off."""

    # Steps
    eta: float = Field(0.99, ge=0, le=1)
    """Share of noise that ``eta_mode`` speaks of."""
    eta_mode: Literal["keep", "ddim_sigma", "fresh"] = "keep"
    """``keep``: eta multiplies the predicted noise, 1 is deterministic, 0 is all fresh noise (released); ``fresh``: eta
    multiplies the fresh noise; ``ddim_sigma``: eta of DDIM, 0 is deterministic and 1 the Gaussian posterior."""
    solver_order: Literal[1, 2] = 1
    """2 averages the estimates at both ends of a step and goes from its beginning with all fresh noise."""
    noise: Literal["per_sample", "released"] = "per_sample"
    """Source of random numbers: ``per_sample``, a function of (seed, sample, step), so that a sample does not depend on its
    batch; ``released``, one generator in the order of the released code, which reproduces it within one batch."""
    strict_released_bugs: bool = False
    """Read schedule names as the released code does; see `mind.timesteps`. Its other fault is not offered: ranks took slices of
    the labels that overlap or leave some out where the number is not a multiple of theirs (`mind.labels.rank_slice` does not)."""

    @model_validator(mode="after")
    def _schedule_exists(self) -> Self:
        timesteps(self.schedule, self.steps, strict_released_bugs=self.strict_released_bugs)
        return self
