"""Regions as bags: which tiles are theirs, and what they are called."""

import numpy as np
import pytest
import shapely

from histomae.data.bags import Bag
from histomae.errors import FeatureError, NotEnoughDataError
from histomae.events import Note, result_of
from histomae.exchange.bags import read_bag
from histomae.exchange.features import read_features
from histomae.infer.cohort import embed_cohort, plan_cohort
from histomae.infer.embed import SlideEmbedding
from histomae.infer.regions import Region, features_within, named_regions, within
from histomae.slides.annotations import Annotation
from histomae.slides.grid import TileGrid, TileSpec

GRID = TileGrid(TileSpec(100, 1.0), (50.0, 20.0), (100.0, 80.0), rows=8, cols=6)


def box(left, top, right, bottom, **named):
    """Return a rectangle by edges in tiles of the grid."""
    corners = GRID.l0_from_grid(np.array([[left, top], [right, bottom]], float))
    return Annotation(shapely.box(*corners.ravel()), **named)


def test_tiles_are_those_that_it_covers_by_half():
    cells = GRID.all_cells()
    region = Region("a", box(1.49, 2, 4, 5.51).roi)
    found = within(region, "slide", GRID, cells)
    expected = {(row, col) for row in (2, 3, 4, 5) for col in (1, 2, 3)}
    expected -= {(5, 1)}  # a corner: half of it by neither side
    assert {tuple(cell) for cell in cells[found].tolist()} == expected


def test_without_a_tile_it_is_named():
    for roi in (box(0.1, 0.1, 0.3, 0.3).roi, shapely.box(-900, -900, -800, -800)):
        with pytest.raises(NotEnoughDataError, match=r"region Fat of C2.*larger"):
            within(Region("Fat", roi), "C2", GRID, GRID.all_cells())
    with pytest.raises(NotEnoughDataError, match="no region"):
        named_regions([])


def test_names_are_given_ones_else_classes_else_numbers():
    drawn = [
        box(0, 0, 1, 1, class_name="Duct"),
        box(1, 0, 2, 1, class_name="Duct"),
        box(2, 0, 3, 1, name="core", class_name="Duct"),
        box(3, 0, 4, 1),
    ]
    regions = named_regions(drawn)
    assert [r.name for r in regions] == ["Duct 1", "Duct 2", "core", "region"]
    assert len({r.region_id for r in regions}) == 4
    odd = named_regions([box(0, 0, 1, 1, name="a/b"), box(0, 0, 2, 1, name="a:b")])
    assert [r.file_stem for r in odd] == ["a_b_1", "a_b_2"]


def test_features_of_a_region_are_some_of_the_slides(make_features, tmp_path):
    whole = read_features(make_features(tmp_path / "s.h5", GRID.all_cells()))
    grid = whole.header.grid
    corners = grid.l0_from_grid(np.array([[1.0, 2.0], [4.0, 6.0]]))
    region = Region("Duct", shapely.box(*corners.ravel()))
    part = features_within(whole, region)
    assert part.header.tiles == len(part.values) == 12
    assert (part.header.region, part.header.region_id) == ("Duct", region.region_id)
    for cell, values in zip(part.cells, part.values, strict=True):
        (at,) = np.flatnonzero((whole.cells == cell).all(1))
        np.testing.assert_array_equal(values, whole.values[at])
    assert part.header.difference(whole.header).startswith("region Duct")


class TestCohort:
    @pytest.fixture
    def drawn(self, slide):
        """A large region, a smaller one within, and one beside the tissue."""
        x0, y0, wide, high = slide.bounds_l0
        middle = np.array([x0 + wide / 2, y0 + high / 2])

        def around(px, **named):
            return Annotation(shapely.box(*(middle - px), *(middle + px)), **named)

        glass = Annotation(shapely.box(x0, y0, x0 + 100, y0 + 100), "Glass")
        return [around(220, class_name="Duct"), around(110, name="core"), glass]

    @pytest.fixture
    def made(self, cohort, encoder, drawn, tmp_path):
        embedding, out = SlideEmbedding(encoder), tmp_path / "features"

        def make(regions=drawn):
            plan = plan_cohort(
                cohort[:1],
                embedding,
                out,
                regions_of=lambda _: named_regions(regions),
            )
            plan = result_of(plan)
            return plan, result_of(embed_cohort(plan, embedding))

        return make

    def test_each_region_is_a_bag_of_its_slide(self, made, slide, encoder, run):
        plan, done = made()
        assert [path.name for path in done.written] == ["a.Duct.h5", "a.core.h5"]
        (failure,) = plan.failures
        assert "Glass of a holds no tile" in failure.reason
        whole = run(SlideEmbedding(encoder).features_of(slide))[1]
        large, core = (read_bag(path) for path in done.written)
        assert (large.slide, large.region, large.name) == ("a", "Duct", "a · Duct")
        assert 5 < len(core) < len(large) < len(whole.cells)
        known = {
            tuple(c): v for c, v in zip(whole.cells.tolist(), whole.values, strict=True)
        }
        for cell, values in zip(core.cells.tolist(), core.features, strict=True):
            np.testing.assert_allclose(values, known[tuple(cell)], atol=1e-5)
        assert read_features(done.written[0]).header.region == "Duct"

    def test_what_is_done_is_not_done_again_and_another_outline_is_told(
        self, made, drawn, run
    ):
        made()
        plan, done = made()
        assert (len(plan.finished), done.written) == (2, ())
        moved = Annotation(drawn[0].roi.buffer(30), class_name="Duct")
        with pytest.raises(FeatureError, match=r"a.Duct.h5 .*region Duct \("):
            made([moved, *drawn[1:]])

    def test_no_region_at_all_is_told_of_the_slide(self, made):
        plan, done = made([])
        assert done.written == ()
        assert "no region" in plan.failures[0].reason


def test_a_bag_is_called_by_slide_and_region():
    spec = read_spec(2)
    one = {"features": np.ones((1, 2)), "cells": np.zeros((1, 2)), "spec": spec}
    assert Bag(slide="C2", **one).name == "C2"
    with pytest.raises(FeatureError, match="C2 · Duct has"):
        Bag(slide="C2", region="Duct", **{**one, "features": np.full((1, 2), np.nan)})


def read_spec(width):
    from histomae.models.feature_spec import FeatureSpec

    return FeatureSpec(encoder="drawn", width=width)


def test_notes_of_a_cohort_name_the_region(cohort, encoder, tmp_path, slide):
    x0, y0, wide, high = slide.bounds_l0
    roi = shapely.box(x0, y0, x0 + wide, y0 + high)
    embedding = SlideEmbedding(encoder)
    plan = result_of(
        plan_cohort(
            cohort[:1], embedding, tmp_path, regions_of=lambda _: [Region("all", roi)]
        )
    )
    notes = [e.text for e in embed_cohort(plan, embedding) if isinstance(e, Note)]
    assert notes == [f"a.tiff · all: {plan.tiles} tiles"]
