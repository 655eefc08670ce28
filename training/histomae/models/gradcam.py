"""Grad-CAM: which places of a convolutional network speak for a class.

Selvaraju et al., ICCV 2017. For a network that ends in the mean over its places and a
linear layer it is the class activation map (Zhou et al., CVPR 2016) over the number of
places, where that is positive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from histomae.models.probe import Probe


def grad_cam(
    features: Tensor, logits: Callable[[Tensor], Tensor], label: int
) -> Tensor:
    """Return how much each place speaks for a class, (N, h, w), 0 or more.

    The paper's equations 1 and 2: each channel is weighted by the mean slope of the
    class's logit over the places, the weighted channels are added up, and what speaks
    against the class is left out.

    Parameters
    ----------
    features
        (N, D, h, w), the network's last map.
    logits
        From such a map to (N, K).
    label
        The class, from 0.
    """
    with torch.enable_grad():
        features = features.detach().clone().requires_grad_()
        score = logits(features)[:, label].sum()
        (slope,) = torch.autograd.grad(score, features)
    weights = slope.mean((2, 3), keepdim=True)
    return (weights * features.detach()).sum(1).relu()


def probe_logits(probe: Probe) -> Callable[[Tensor], Tensor]:
    """Return the function from a map (N, D, h, w) to a probe's logits (N, K).

    The probe's pooling must be the mean over the places.
    """

    def logits(features: Tensor) -> Tensor:
        parts = (probe.mean, probe.std, probe.weight, probe.bias)
        mean, std, weight, bias = (torch.tensor(a).to(features.device) for a in parts)
        standard = (features.mean((2, 3)) - mean) / std
        return (standard @ weight.T + bias) / probe.temperature

    return logits
