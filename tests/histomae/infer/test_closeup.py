"""A close look at a tile, and another look at the same one."""

import numpy as np
import pytest

from histomae.infer.closeup import Look, look_again, look_closely
from histomae.infer.reconstruct import random_masks

CELL = (6, 4)


def test_it_is_that_tile(slide, encoder, grid, probe, run):
    look = Look(block=1, head=2, mask_ratio=0.5, seed=3)
    _, found = run(look_closely(slide, encoder, grid, CELL, probe=probe, look=look))
    tile = slide.read_region(grid.xy_l0(*CELL), (32, 32), 1.0)
    np.testing.assert_array_equal(found.tile, tile)
    assert (found.cell, found.look) == (CELL, look)
    # column 4 and row 6 of tiles of 32 µm
    assert found.centre_mm == pytest.approx((4.5 * 0.032, 6.5 * 0.032))
    assert found.box_l0 == pytest.approx((4 * 80, 6 * 64, 5 * 80, 7 * 64))
    wanted = probe.probabilities(encoder.embed(tile[None]))[0]
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-6)
    attention = encoder.attention(tile[None], block=1, head=2)[0]
    np.testing.assert_allclose(found.attention, attention, atol=1e-6)
    mask = random_masks(1, (4, 4), 0.5, 3)
    np.testing.assert_array_equal(found.reconstruction.mask, mask[0])
    again = encoder.reconstruct(tile[None], mask)[0]
    np.testing.assert_array_equal(
        found.reconstruction.reconstruction, again.reconstruction
    )


def test_attention_lies_on_its_tile(slide, encoder, grid, run):
    _, found = run(look_closely(slide, encoder, grid, CELL))
    heatmap = found.attention_map
    assert heatmap.values is found.attention
    assert heatmap.origin_xy_l0 == pytest.approx((320, 384))
    assert heatmap.pixel_size_l0 == pytest.approx((20, 16))


def test_without_probe_and_decoder(slide, bare_encoder, grid, run):
    _, found = run(look_closely(slide, bare_encoder, grid, CELL))
    assert found.probabilities is None
    assert found.reconstruction is None
    assert found.attention.shape == (4, 4)


def test_it_can_be_given_up_between_the_steps(slide, encoder, grid, probe):
    work = look_closely(slide, encoder, grid, CELL, probe=probe)
    next(work)
    work.close()
    with pytest.raises(StopIteration):
        next(work)


def test_another_look_computes_what_differs(slide, encoder, grid, run):
    _, first = run(look_closely(slide, encoder, grid, CELL, look=Look()))

    head = look_again(first, encoder, Look(block=0, head="rollout"))
    wanted = encoder.attention(first.tile[None], block=0, head="rollout")[0]
    np.testing.assert_allclose(head.attention, wanted, atol=1e-6)
    assert head.reconstruction is first.reconstruction

    mask = look_again(first, encoder, Look(seed=1))
    assert mask.attention is first.attention
    assert (mask.reconstruction.mask != first.reconstruction.mask).any()

    knowing = look_again(first, encoder, Look(statistics="true"))
    np.testing.assert_array_equal(
        knowing.reconstruction.mask, first.reconstruction.mask
    )
    assert (
        knowing.reconstruction.reconstruction != first.reconstruction.reconstruction
    ).any()
    assert knowing.look == Look(statistics="true")
