"""Guides towards the targets of a run, by a predictor of properties or by the domain's oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sciflow.guides.guide import Guide

if TYPE_CHECKING:
    from sciflow.denoisers import Denoiser
    from sciflow.model import Model

__all__ = ["TOWARDS"]


def _classifier(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    from sciflow.guidance import ClassifierGuidance

    predictor = model.predictor(settings["predictor"] or None)
    return ClassifierGuidance(
        denoiser, predictor, settings["weight"], interval=(settings["first"], settings["last"]),
        largest=settings["largest"], tokens=settings["tokens"],
    )  # fmt: skip


def _training_free(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    from sciflow.guidance.energy.training_free import TrainingFree
    from sciflow.paths import CategoricalPath

    predictor = model.predictor(settings["predictor"] or None)
    mu = {
        name: settings["tokens" if isinstance(path, CategoricalPath) else "mu"]
        for name, path in denoiser.paths.items()
    }
    return TrainingFree(
        denoiser, predictor.of_clean, rho=settings["rho"], mu=mu,
        gamma=settings["gamma"], iterations=settings["iterations"], clip=settings["clip"],
        interval=(settings["first"], settings["last"]),
    )  # fmt: skip


def _particles(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    from sciflow.guidance.particles.guided import ParticleGuidance
    from sciflow.guides.rewards import reward_of

    reward = reward_of(model, settings["by"], settings["width"], settings["predictor"] or None)
    return ParticleGuidance(
        denoiser, reward, settings["count"], scale=settings["scale"],
        potential=settings["potential"], twisted=settings["twisted"], blur=settings["blur"],
        threshold=settings["threshold"], every=settings["every"], pick=settings["pick"],
    )  # fmt: skip


TOWARDS: dict[str, Guide] = {
    "classifier": Guide(
        "towards the targets by a predictor of noisy samples (Dhariwal & Nichol 2021)",
        {"weight": 1.0, "tokens": 0.2, "first": 0.0, "last": 1.0, "largest": 0.3, "predictor": ""},
        _classifier,
    ),
    "training-free": Guide(
        "the same by a predictor of clean samples, at the clean estimate (Ye et al. 2024, TFG)",
        {"rho": 0.0, "mu": 1.0, "tokens": 0.2, "gamma": 0.0, "iterations": 1, "clip": 1.0,
         "first": 0.0, "last": 1.0, "predictor": ""},
        _training_free,
    ),
    "particles": Guide(
        "the same by weighted particles, count times the calls; by=predictor or by=oracle "
        "(Singhal et al. 2025; twisted: Wu et al. 2023)",
        {"count": 4, "scale": 1.0, "every": 5, "threshold": 0.5, "potential": "difference",
         "twisted": False, "blur": 0.0, "pick": "draw", "by": "predictor", "width": 0.1,
         "predictor": ""},
        _particles,
    ),
}  # fmt: skip
"""Name → guide, where a predictor or an oracle knows the properties asked for."""
