"""Grad-CAM, against the class activation map that it is in a closed form."""

import numpy as np
import torch
from torch import nn

from histomae.models.gradcam import grad_cam, probe_logits
from histomae.models.probe import Probe


def test_with_a_mean_and_a_linear_layer_it_is_the_class_activation_map():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 3, 4, generator=generator).relu()
    probe = Probe(
        mean=np.linspace(-1, 1, 5),
        std=np.linspace(0.5, 2, 5),
        weight=torch.randn(3, 5, generator=generator).numpy(),
        bias=np.arange(3.0),
        class_names=("a", "b", "c"),
        class_colors=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
        encoder_id="x",
        tile_px=32,
        mpp=1.0,
        pooling="mean",
        temperature=2.0,
    )
    for label in range(3):
        found = grad_cam(features, probe_logits(probe), label).numpy()
        weight = probe.weight[label] / probe.std / 2.0
        activation = np.zeros((2, 3, 4))
        for picture in range(2):
            for y in range(3):
                for x in range(4):
                    for channel in range(5):
                        activation[picture, y, x] += (
                            weight[channel] * features[picture, channel, y, x].item()
                        )
        expected = activation.clip(0) / 12  # over the number of places
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_head_that_is_not_linear_is_asked_for_its_slope():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    features = torch.randn(1, 4, 2, 2, dtype=torch.float64)

    def logits(maps):
        return head(maps.mean((2, 3)))

    weights = torch.zeros(4, dtype=torch.float64)
    for channel in range(4):  # by small steps, at all places at once
        step = torch.zeros_like(features)
        step[:, channel] = 1e-5
        rise = logits(features + step)[0, 1] - logits(features - step)[0, 1]
        weights[channel] = rise.detach() / 2e-5 / 4
    expected = torch.einsum("c,nchw->nhw", weights, features).relu()
    torch.testing.assert_close(
        grad_cam(features, logits, 1), expected, rtol=1e-5, atol=1e-8
    )
