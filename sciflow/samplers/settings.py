"""The settings of a sampler: which there are, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from sciflow.errors import InputError
from sciflow.samplers.discrete import TokenMethod
from sciflow.samplers.grids import GRIDS, check_times
from sciflow.samplers.interpolant_sde import Diffusion
from sciflow.samplers.methods import METHODS
from sciflow.samplers.predictor_corrector import LARGEST_RATIO

__all__ = ["SamplerSettings"]


@dataclass(frozen=True)
class SamplerSettings:
    """How to integrate; plain data, so it can be saved with a model.

    Attributes:
        steps: network calls in all (methods of two calls a step use an odd number of them), where
            ``recurrence`` is 1.
        method: how continuous fields move, a name in :data:`~sciflow.samplers.methods.METHODS`.
        grid: power-u, fine-u, uniform-u, uniform-logsnr, karras or time, on the schedule of the
            first continuous field (tokens alone take ``time``); or the list of the times of the
            calls, as many as ``steps``.
        extrapolate: the last step of ``ab`` and ``reab`` methods too uses earlier estimates, not
            the last alone: nearer to the exact flow from about ten calls on, where the denoiser is
            smooth; the last estimate of a network is cleaner.
        prior_scale: factor on the noise that Gaussian fields start from. The flow carries it over,
            of a Gaussian exactly: above 1 samples spread wider about their mean, below 1 less.
        eta: fresh noise of ``ddim``, ``dpmpp2m``, ``dpmpp3m`` and ``pc``.
        diffusion: w(t) of ``sde``; see :mod:`sciflow.samplers.interpolant_sde`.
        diffusion_scale: of w; 0 is the probability-flow ODE.
        langevin_ratio: signal to noise of a Langevin step of ``pc``, 0 to √½.
        token_eta: how often absorbing tokens are masked again.
        token_method: how tokens move; see :mod:`sciflow.samplers.discrete`.
        temperature: of token draws.
        greedy: end with the most probable tokens.
        cache: keep the estimate while no token of the batch has changed (Sahoo et al. 2024): the
            same samples from fewer calls. For states of absorbing tokens only, and denoisers whose
            answer depends neither on the time nor on their last answer.
        logsnr_last: log(a/s) of the last call before the final denoising.
        restarts: how often the sample is noised up and denoised again.
        restart_time: to what time of the shared clock.
        restart_low: from what time on; 0 is the finished sample.
        restart_share: the part of ``steps`` that each restart takes, rounded down; where that is
            no call at all there are no restarts.
        churn: S_churn, how much the noise is raised before the steps of a pass in all.
        churn_min: S_tmin, the least noise level s/a that is raised.
        churn_max: S_tmax, the largest; ``None`` is no bound.
        churn_noise: S_noise, a factor on the noise of churn, and of restarts from above 0.
        recurrence: how often each step is made: after it every field is noised up again by its own
            forward process and the step made anew, at ``recurrence`` · ``steps`` calls in all. This
            is N_recur of TFG (Ye et al. 2024), the self-recurrence of UGD (Bansal et al. 2023), the
            time travel of FreeDoM (Yu et al. 2023) and the resampling of RePaint (Lugmayr et al.
            2022, jumps of length 1): what guidance or given elements bent gets mended.
    """

    steps: int = 50
    method: str = "ab3"
    grid: str | Sequence[float] = "power-u"
    extrapolate: bool = False
    prior_scale: float = 1.0
    eta: float = 0.0
    diffusion: Diffusion = "sigma"
    diffusion_scale: float = 1.0
    langevin_ratio: float = 0.16
    token_eta: float = 0.0
    token_method: TokenMethod = "ancestral"
    temperature: float = 1.0
    greedy: bool = True
    cache: bool = False
    logsnr_last: float = 5.0
    restarts: int = 0
    restart_time: float = 0.1
    restart_low: float = 0.0
    restart_share: float = 0.2
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float | None = None
    churn_noise: float = 1.0
    recurrence: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        if not isinstance(self.grid, str):
            # A tuple: samplers are compared and hashed.
            object.__setattr__(self, "grid", check_times(self.grid))
            if self.restarts:
                raise InputError("restarts need a named grid, not a list of times")
        elif self.grid not in GRIDS:
            raise InputError(f"unknown time grid {self.grid!r}; known: {', '.join(GRIDS)}")
        if self.steps < 1:
            raise InputError(f"a sampler needs at least 1 network call, not {self.steps}")
        if self.extrapolate and not self.method.startswith(("ab", "reab")):
            raise InputError(
                f"extrapolate is of the methods ab1 to ab3 and reab1 to reab3, not {self.method!r}"
            )
        if not 0 < self.prior_scale < math.inf:
            raise InputError(f"prior_scale must be above 0 and finite, not {self.prior_scale}")
        if not self.eta >= 0:
            raise InputError(f"eta must be 0 (no fresh noise) or more, not {self.eta}")
        if self.diffusion not in get_args(Diffusion):
            raise InputError(
                f"unknown diffusion {self.diffusion!r}; known: {', '.join(get_args(Diffusion))}"
            )
        if not self.diffusion_scale >= 0:
            raise InputError(
                f"diffusion_scale must be 0 (no fresh noise) or more, not {self.diffusion_scale}"
            )
        if not 0 <= self.langevin_ratio <= LARGEST_RATIO:
            raise InputError(
                "langevin_ratio must lie between 0 (no Langevin steps) and sqrt(1/2), where all "
                f"noise is drawn anew, not {self.langevin_ratio}"
            )
        if not 0 <= self.token_eta <= 1:
            raise InputError(f"token_eta must lie between 0 and 1, not {self.token_eta}")
        if self.token_method not in get_args(TokenMethod):
            raise InputError(
                f"unknown token method {self.token_method!r}; "
                f"known: {', '.join(get_args(TokenMethod))}"
            )
        if not self.temperature > 0:
            raise InputError(
                f"temperature must be above 0, not {self.temperature}; a small one gives the most "
                "probable tokens"
            )
        if self.restarts < 0:
            raise InputError(f"restarts must be 0 or more, not {self.restarts}")
        if not 0 < self.restart_time <= 1:
            raise InputError(f"restart_time must be above 0 and at most 1, not {self.restart_time}")
        if not 0 <= self.restart_low < self.restart_time:
            raise InputError(
                "a restart goes up: restart_low must be 0 or more and below restart_time "
                f"({self.restart_time:g}), not {self.restart_low}"
            )
        if not (self.restart_share >= 0 and self.restarts * self.restart_share < 1):
            raise InputError(
                f"{self.restarts} restarts of {self.restart_share:g} of the calls each leave "
                "none for the first pass; ask for fewer or a smaller restart_share"
            )
        if not self.churn >= 0:
            raise InputError(f"churn must be 0 (none) or more, not {self.churn}")
        if not 0 <= self.churn_min < (math.inf if self.churn_max is None else self.churn_max):
            raise InputError(
                "churn is for noise levels from churn_min, at least 0, to a larger churn_max, not "
                f"from {self.churn_min} to {self.churn_max}"
            )
        if not self.churn_noise > 0:
            raise InputError(f"churn_noise must be above 0, not {self.churn_noise}")
        if self.recurrence < 1:
            raise InputError(
                f"recurrence must be 1 (each step once) or more, not {self.recurrence}"
            )

    @property
    def ancestral_eta(self) -> float:
        """η of DDIM's family, of which DDPM is η = 1; 0 of every other method."""
        return {"ddpm": 1.0, "ddim": self.eta}.get(self.method, 0.0)

    @property
    def fresh_noise(self) -> str:
        """What of the settings draws noise of continuous fields anew on the way; else empty.

        Restarts from the finished sample are not meant: they draw the noise that it is coupled
        with.
        """
        if METHODS[self.method].fresh(self):
            return f"method {self.method}" + (f" with eta {self.eta:g}" if self.eta > 0 else "")
        if self.churn > 0:
            return f"churn {self.churn:g}"
        if self.restarts and self.restart_low > 0:
            return f"restart_low {self.restart_low:g}"
        return f"recurrence {self.recurrence}" if self.recurrence > 1 else ""

    def config(self) -> dict[str, Any]:
        """Plain data; ``Sampler(**config)`` gives it back."""
        return asdict(self)
