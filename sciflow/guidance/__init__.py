"""Guidance: a denoiser made from a denoiser, so that any guidance runs under any sampler."""

from sciflow.guidance.classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
