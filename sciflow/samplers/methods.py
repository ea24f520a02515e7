"""Which stepper moves a field: by the kind of its path, and by the name of the method.

A new solver for continuous fields is a :class:`~sciflow.samplers.steppers.Stepper` in a file of its
own and a line in :data:`METHODS`; a new kind of path is a branch in :func:`stepper_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sciflow.errors import InputError
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath, Path
from sciflow.samplers.ancestral import Ancestral
from sciflow.samplers.discrete import MarkovJumps
from sciflow.samplers.geodesic import geodesic_stepper
from sciflow.samplers.heun import Heun
from sciflow.samplers.interpolant_sde import InterpolantSDE
from sciflow.samplers.multistep import ExponentialMultistep, Kind
from sciflow.samplers.plan import Plan
from sciflow.samplers.predictor_corrector import PredictorCorrector
from sciflow.samplers.steppers import Stepper
from sciflow.samplers.unipc import UniPC

if TYPE_CHECKING:
    from sciflow.samplers.settings import SamplerSettings

__all__ = ["METHODS", "Method", "stepper_of"]


@dataclass(frozen=True)
class Method:
    """How continuous fields are integrated.

    Attributes:
        make: the stepper of a field from its path, the plan, the sampler's settings and the name
            of the field (of its random numbers).
        doubled: each step but the last takes two calls (:meth:`Plan.doubled`).
        fresh: whether it draws noise anew on the way, by the settings.
    """

    make: Callable[[GaussianPath, Plan, SamplerSettings, str], Stepper]
    doubled: bool = False
    fresh: Callable[[SamplerSettings], bool] = lambda settings: False


def _by_eta(settings: SamplerSettings) -> bool:
    return settings.eta > 0


def _multistep(kind: Kind, order: int, rule: Literal["exact", "midpoint"] = "exact") -> Method:
    return Method(lambda path, plan, settings, name: ExponentialMultistep(
        path, plan, kind, order, rule, extrapolate=settings.extrapolate))  # fmt: skip


METHODS: dict[str, Method] = {
    "ab1": _multistep("velocity", 1),
    "ab2": _multistep("velocity", 2),
    "ab3": _multistep("velocity", 3),
    "reab1": _multistep("angle", 1),
    "reab2": _multistep("angle", 2),
    "reab3": _multistep("angle", 3),
    "dpm2": _multistep("eps", 2, "midpoint"),
    "dpm3": _multistep("eps", 3),
    "dpmpp2m": Method(lambda path, plan, settings, name: ExponentialMultistep(
        path, plan, "x0", 2, "midpoint", settings.eta, name), fresh=_by_eta),
    "dpmpp3m": Method(lambda path, plan, settings, name: ExponentialMultistep(
        path, plan, "x0", 3, "exact", settings.eta, name), fresh=_by_eta),
    "sde-dpmpp2m": Method(lambda path, plan, settings, name: ExponentialMultistep(
        path, plan, "x0", 2, "midpoint", 1.0, name), fresh=lambda settings: True),
    "unipc1": Method(lambda path, plan, settings, name: UniPC(path, plan, 1)),
    "unipc2": Method(lambda path, plan, settings, name: UniPC(path, plan, 2)),
    "unipc3": Method(lambda path, plan, settings, name: UniPC(path, plan, 3)),
    "unipc2-bh1": Method(lambda path, plan, settings, name: UniPC(path, plan, 2, "bh1")),
    "heun": Method(lambda path, plan, settings, name: Heun(path, plan), doubled=True),
    "ddim": Method(lambda path, plan, settings, name: Ancestral(path, plan, settings.eta, name),
                   fresh=_by_eta),
    "ddpm": Method(lambda path, plan, settings, name: Ancestral(path, plan, 1.0, name),
                   fresh=lambda settings: True),
    "sde": Method(lambda path, plan, settings, name: InterpolantSDE(
        path, plan, settings.diffusion, settings.diffusion_scale, name),
        fresh=lambda settings: settings.diffusion_scale > 0),
    "pc": Method(lambda path, plan, settings, name: PredictorCorrector(
        path, plan, settings.langevin_ratio, settings.eta, name), doubled=True,
        fresh=lambda settings: settings.langevin_ratio > 0 or settings.eta > 0),
}  # fmt: skip


def stepper_of(name: str, path: Path, plan: Plan, settings: SamplerSettings) -> Stepper:
    """The stepper of the field ``name``.

    Raises:
        InputError: fresh noise for a field whose noise was coupled with the data: a sample would
            leave the law that the model knows.
    """
    if isinstance(path, CategoricalPath):
        return MarkovJumps(path, plan, settings.token_eta, settings.temperature, settings.greedy,
                           stream=name, method=settings.token_method)  # fmt: skip
    if isinstance(path, GaussianPath):
        if not path.coupling.independent and (what := settings.fresh_noise):
            raise InputError(
                f"{what} draws fresh noise, and the noise of {name!r} was coupled with the data in "
                f"training ({path.coupling.kind}): only the flow of such a model is known, not its "
                "score; take a method without fresh noise, such as ab2 or unipc2"
            )
        return METHODS[settings.method].make(path, plan, settings, name)
    if isinstance(path, GeodesicPath):
        twice = METHODS[settings.method].doubled
        return geodesic_stepper(path, plan, settings.method, settings.eta, twice, name)
    raise TypeError(f"no stepper for the path of field {name!r}: {type(path).__name__}")
