"""diffusers, azula and k-diffusion on an exact denoiser, each as its users call it.

A peer is a table of named runs; a run takes (denoise, y, n) and returns the end of n calls from
``y = x/a`` at the largest noise level, where ``denoise(y, sigma) = E[x_0 | x_0 + sigma eps = y]``.
Only what the packages document is used: scheduler classes with their arguments; samplers, noise
schedules and their ranges; functions of a list of sigmas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Denoise = Callable[[Tensor, float], Tensor]
Run = Callable[[Denoise, Tensor, int], Tensor]

TRAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
         "beta_schedule": "linear"}  # fmt: skip


def alphas_bar() -> Tensor:
    """Products of 1 − beta, float64 ``[1000]``."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)


SIGMA_MAX, SIGMA_MIN = (
    math.sqrt((1 - float(a)) / float(a)) for a in (alphas_bar()[-1], alphas_bar()[0])
)


def diffusers_run(make: Callable[[], Any]) -> Run:
    def run(denoise: Denoise, y: Tensor, n: int) -> Tensor:
        scheduler = make()
        scheduler.set_timesteps(n)
        x = y / math.sqrt(1 + SIGMA_MAX**2) * float(scheduler.init_noise_sigma)
        for i, t in enumerate(scheduler.timesteps):
            if hasattr(scheduler, "sigmas"):
                # The level itself, not the integer time that it is rounded to.
                sigma = float(scheduler.sigmas[i])
            else:
                abar = float(scheduler.alphas_cumprod[int(t)])
                sigma = math.sqrt((1 - abar) / abar)
            inputs = scheduler.scale_model_input(x, t).double() * math.sqrt(1 + sigma**2)
            eps = (inputs - denoise(inputs, sigma)) / sigma
            x = scheduler.step(eps, t, x).prev_sample
        return x.double()

    return run


def diffusers_runs() -> tuple[dict[str, Run], dict[str, Run]]:
    """Runs at default settings, and at every documented option of the multistep schedulers."""
    from diffusers import (
        DDIMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        LMSDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    def made(cls: Any, **options: Any) -> Run:
        return diffusers_run(lambda: cls(**TRAIN, **options))

    families = {"DPM++": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler,
                "DEIS": DEISMultistepScheduler}  # fmt: skip
    default = {
        "DDIM": made(DDIMScheduler, clip_sample=False),
        "Euler": made(EulerDiscreteScheduler),
        "LMS": made(LMSDiscreteScheduler),
    }
    option: dict[str, Run] = {}
    for spacing in ("linspace", "trailing"):
        option[f"DDIM {spacing}"] = made(DDIMScheduler, clip_sample=False, timestep_spacing=spacing)
    for name, cls in families.items():
        for order in (2, 3):
            default[f"{name}-{order}"] = made(cls, solver_order=order)
            grids: dict[str, dict[str, Any]] = {
                "karras": {"use_karras_sigmas": True},
                "exponential": {"use_exponential_sigmas": True},
                "beta": {"use_beta_sigmas": True},
                "trailing": {"timestep_spacing": "trailing"},
                "leading": {"timestep_spacing": "leading"},
            }
            if name == "DPM++":
                grids["lu"] = {"use_lu_lambdas": True}
            for grid, options in grids.items():
                option[f"{name}-{order} {grid}"] = made(cls, solver_order=order, **options)
    return default, option


def azula_run(cls: Any, schedule: Any, denoised: bool, options: dict[str, Any]) -> Run:
    from azula.denoise import Denoiser, DiracPosterior

    class Exact(Denoiser):
        def __init__(self, denoise: Denoise):
            nn.Module.__init__(self)
            self.denoise, self.schedule = denoise, schedule

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            a, s = (float(v) for v in schedule(t.double()))
            return DiracPosterior(mean=self.denoise(x_t / a, s / a))

    def run(denoise: Denoise, y: Tensor, n: int) -> Tensor:
        model = Exact(denoise)
        begin, end = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        x = float(schedule(begin)[0]) * y
        steps = n - 1 if denoised else n
        x = cls(model, steps=steps, silent=True, dtype=torch.float64, **options)(x)
        return model(x, end).mean if denoised else x

    return run


def azula_runs() -> tuple[dict[str, Run], dict[str, Run]]:
    """Runs on the target's own schedule, and on azula's schedules over the same noise levels."""
    from azula import noise, sample

    class Linear(noise.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            # beta rises linearly; sigma/alpha runs over the target's levels.
            beta = -math.log(1 / (1 + SIGMA_MAX**2)) - 1e-4
            alpha = torch.exp(-0.5 * (1e-4 + 0.1 * t + (beta - 0.1) * t**2))
            return alpha, torch.sqrt(1 - alpha**2)

    ends = {"alpha_min": 1 / SIGMA_MAX, "sigma_min": SIGMA_MIN}
    schedules = {
        "VE": noise.VESchedule(SIGMA_MIN, SIGMA_MAX),
        "VP": noise.VPSchedule(**ends),
        "cosine": noise.CosineSchedule(**ends),
        "rectified": noise.RectifiedSchedule(**ends),
        "decay": noise.DecaySchedule(**ends),
    }
    samplers: dict[str, tuple[Any, dict[str, Any]]] = {
        "DDIM": (sample.DDIMSampler, {}),
        "Euler": (sample.EulerSampler, {}),
    }
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        samplers |= {f"{name}-{k}": (getattr(sample, f"{name}Sampler"), {"order": k})
                     for k in (2, 3)}  # fmt: skip
    default = {k: azula_run(cls, Linear(), False, o) for k, (cls, o) in samplers.items()}
    option = {
        f"{k} {name}{' + denoise' if last else ''}": azula_run(cls, schedule, last, o)
        for k, (cls, o) in samplers.items()
        for name, schedule in schedules.items()
        for last in (False, True)
    }
    return default, option


def k_diffusion_runs() -> tuple[dict[str, Run], dict[str, Run]]:
    """Deterministic samplers on the package's lists of sigmas."""
    from k_diffusion import sampling

    def made(solver: Any, sigmas: Any, twice: bool = False) -> Run:
        def run(denoise: Denoise, y: Tensor, n: int) -> Tensor:
            grid = sigmas((n + 1) // 2 if twice else n, SIGMA_MIN, SIGMA_MAX).double()
            return solver(lambda x, sigma: denoise(x, float(sigma[0])), y, grid, disable=True)

        return run

    solvers = {"dpmpp_2m": sampling.sample_dpmpp_2m, "lms": sampling.sample_lms}
    grids = {"karras": sampling.get_sigmas_karras, "exponential": sampling.get_sigmas_exponential}
    runs = {f"{s} {g}": made(f, grid) for s, f in solvers.items() for g, grid in grids.items()}
    runs |= {f"heun {g}": made(sampling.sample_heun, grid, True) for g, grid in grids.items()}
    return {k: r for k, r in runs.items() if k.endswith("karras")}, runs


Loop = Callable[[Tensor, int], object]


def diffusers_loops() -> dict[str, Loop]:
    """The sampling loop around 0.5 x, with a scheduler that is made once."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    def looped(scheduler: Any) -> Loop:
        def loop(x: Tensor, n: int) -> Tensor:
            scheduler.set_timesteps(n)
            for t in scheduler.timesteps:
                x = scheduler.step(0.5 * x, t, x).prev_sample
            return x

        return loop

    return {
        "DDIM": looped(DDIMScheduler(**TRAIN, clip_sample=False)),
        "DPM++-2": looped(DPMSolverMultistepScheduler(**TRAIN)),
        "UniPC-2": looped(UniPCMultistepScheduler(**TRAIN)),
    }


def azula_loops() -> dict[str, Loop]:
    """azula's samplers of a denoiser 0.5 x."""
    from azula import noise, sample
    from azula.denoise import Denoiser, DiracPosterior

    class Half(Denoiser):
        schedule = noise.VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return DiracPosterior(mean=0.5 * x_t)

    names = {"DDIM": sample.DDIMSampler, "vAB-2": sample.vABSampler, "xEAB-2": sample.xEABSampler}
    return {
        k: lambda x, n, cls=cls: cls(Half(), steps=n, silent=True)(x) for k, cls in names.items()
    }


def k_diffusion_loops() -> dict[str, Loop]:
    """DPM++(2M) of 0.5 x."""
    from k_diffusion import sampling

    grid = sampling.get_sigmas_karras
    return {"dpmpp_2m": lambda x, n: sampling.sample_dpmpp_2m(
        lambda y, sigma: 0.5 * y, x, grid(n, SIGMA_MIN, SIGMA_MAX), disable=True)}  # fmt: skip


LOOPS = {"diffusers": diffusers_loops, "azula": azula_loops, "k-diffusion": k_diffusion_loops}
PEERS = {"diffusers": diffusers_runs, "azula": azula_runs, "k-diffusion": k_diffusion_runs}
