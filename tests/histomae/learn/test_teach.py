"""From drawn regions to a probe: groups, classes, colours, tiles that are missing."""

from types import SimpleNamespace

import numpy as np
import pytest
import shapely

from histomae.data.classes import OKABE_ITO
from histomae.errors import NotEnoughDataError
from histomae.events import Progress, result_of
from histomae.infer.embed import Embeddings
from histomae.learn.teach import (
    LabelledSlide,
    classes_of,
    embed_labelled,
    teach,
)
from histomae.slides.annotations import Annotation, label_cells
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide

RED, GREEN = (200, 30, 30), (30, 160, 60)
#: Stands in for an encoder: nothing here looks at a picture.
ENCODER = SimpleNamespace(
    encoder_id="e" * 16, spec=TileSpec(50, 1.0), poolings=("class_token", "mean")
)


def box(col, row, class_name, color=None, *, cols=2, rows=2):
    """Return a region of whole tiles (50 x 50 µm: 125 x 100 level-0 pixels)."""
    x, y = col * 125, row * 100
    roi = shapely.box(x, y, x + cols * 125, y + rows * 100)
    return Annotation(roi, class_name, color)


@pytest.fixture
def slides(make_slide):
    opened = [Slide.open(make_slide(mpp=(0.4, 0.5), size=(1100, 901))) for _ in "ab"]
    yield opened
    for slide in opened:
        slide.close()


@pytest.fixture
def labelled(slides):
    """Two slides; "Gland" and "Fat" on both, regions in another order."""
    return [
        LabelledSlide(
            slides[0],
            [
                box(0, 0, "Gland", RED),
                box(4, 0, "Fat"),
                box(0, 4, "Gland", RED),
                box(4, 4, "Fat"),
                box(0, 7, "", cols=1, rows=1),
            ],
        ),
        LabelledSlide(
            slides[1],
            [
                box(0, 0, "Fat"),
                box(4, 0, "Gland", GREEN),
                box(0, 4, "Fat"),
                box(4, 4, "Gland", GREEN),
            ],
        ),
    ]


class Embedding:
    """Embeds tiles as numbers that are known: by class, with what cannot be read."""

    def __init__(self, labelled, unreadable=()):
        self.labelled = labelled
        self.unreadable = unreadable
        self.calls = []

    def __call__(self, slide, encoder, grid, cells, *, pooling):
        self.calls.append((slide, pooling))
        number = [item.slide for item in self.labelled].index(slide)
        found = label_cells(self.labelled[number].annotations, grid, ["Gland", "Fat"])
        np.testing.assert_array_equal(found.cells, cells)
        random = np.random.default_rng(number)
        values = random.normal(scale=0.1, size=(len(cells), 4)).astype(np.float32)
        values[:, 0] += found.labels
        values[:, 3] = 100 * number + np.arange(len(cells))
        for slide_number, place in self.unreadable:
            if slide_number == number:
                values[place] = np.nan
        yield Progress("embedding tiles", len(cells), len(cells))
        return Embeddings(values, cells, grid, encoder.encoder_id, pooling)


def test_groups_of_different_slides_never_collide(labelled):
    tiles = result_of(
        embed_labelled(labelled, ENCODER, ["Gland", "Fat"], embed=Embedding(labelled))
    )
    assert len(tiles.values) == len(tiles.labels) == len(tiles.groups) == 8 * 4
    groups, counts = np.unique(tiles.groups, return_counts=True)
    assert len(groups) == 8
    assert (counts == 4).all()
    second = tiles.values[:, 3] >= 100
    assert not set(tiles.groups[second]) & set(tiles.groups[~second])
    # The class of a group is that of its region, whatever the order on the slide.
    annotations = [*labelled[0].annotations, *labelled[1].annotations]
    for group in groups:
        names = {tiles.class_names[k] for k in tiles.labels[tiles.groups == group]}
        assert names == {annotations[group].class_name}


def test_a_slide_that_is_given_twice_keeps_its_regions_apart(labelled):
    twice = [labelled[0], labelled[0]]
    tiles = result_of(
        embed_labelled(twice, ENCODER, ["Gland", "Fat"], embed=Embedding(twice))
    )
    assert len(np.unique(tiles.groups)) == 8


def test_tiles_that_cannot_be_read_are_left_out(labelled):
    gone = [(0, 0), (0, 7), (1, 3)]
    tiles = result_of(
        embed_labelled(
            labelled, ENCODER, ["Gland", "Fat"], embed=Embedding(labelled, gone)
        )
    )
    whole = result_of(
        embed_labelled(labelled, ENCODER, ["Gland", "Fat"], embed=Embedding(labelled))
    )
    kept = np.setdiff1d(np.arange(32), [0, 7, 16 + 3])
    np.testing.assert_array_equal(tiles.values, whole.values[kept])
    np.testing.assert_array_equal(tiles.labels, whole.labels[kept])
    np.testing.assert_array_equal(tiles.groups, whole.groups[kept])
    assert tiles.values.dtype == np.float32
    probe = result_of(teach(labelled, ENCODER, embed=Embedding(labelled, gone)))
    assert sum(probe.scores["tiles"].values()) == 29


def test_slides_without_regions_are_not_read(slides, labelled):
    embed = Embedding([labelled[0]])
    bare = LabelledSlide(slides[1], [])
    tiles = result_of(
        embed_labelled([bare, labelled[0]], ENCODER, ["Gland", "Fat"], embed=embed)
    )
    assert [slide for slide, _ in embed.calls] == [slides[0]]
    assert len(tiles.labels) == 16


def test_only_the_classes_that_are_named(labelled):
    embed = Embedding(labelled)
    with pytest.raises(NotEnoughDataError, match="at least 50 µm wide"):
        result_of(embed_labelled(labelled, ENCODER, ["Nerve"], embed=embed))
    assert embed.calls == []


def test_classes_keep_their_order_and_colours(labelled):
    assert classes_of(labelled) == {"Gland": RED, "Fat": OKABE_ITO[0]}
    assert list(classes_of(labelled)) == ["Gland", "Fat"]
    assert list(classes_of(labelled[::-1])) == ["Fat", "Gland"]
    assert classes_of(labelled[::-1])["Gland"] == GREEN
    assert classes_of([]) == {}


def test_a_class_takes_the_colour_of_any_of_its_regions(slides):
    drawn = [box(0, 0, "Gland"), box(4, 0, "Gland", RED)]
    assert classes_of([LabelledSlide(slides[0], drawn)]) == {"Gland": RED}


def test_no_two_classes_share_a_colour(slides):
    drawn = [box(0, 0, "Gland"), box(4, 0, "Fat", OKABE_ITO[0]), box(0, 4, "Nerve")]
    colors = classes_of([LabelledSlide(slides[0], drawn)])
    assert list(colors) == ["Gland", "Fat", "Nerve"]
    assert colors["Fat"] == OKABE_ITO[0]
    assert len(set(colors.values())) == 3


def test_teach_gives_a_probe_of_the_encoder(labelled):
    embed = Embedding(labelled)
    probe = result_of(teach(labelled, ENCODER, pooling="mean", embed=embed))
    assert probe.class_names == ("Gland", "Fat")
    assert probe.class_colors == (RED, OKABE_ITO[0])
    assert probe.encoder_id == ENCODER.encoder_id
    assert (probe.tile_px, probe.mpp, probe.pooling) == (50, 1.0, "mean")
    assert {pooling for _, pooling in embed.calls} == {"mean"}
    assert probe.scores["regions"] == {"Gland": 4, "Fat": 4}
    assert probe.scores["balanced_accuracy"] == 1
    likely = probe.probabilities(np.float32([[0, 0, 0, 50], [1, 0, 0, 50]])).argmax(1)
    assert likely.tolist() == [0, 1]


def test_classes_that_are_given_set_order_and_colours(labelled):
    colors = {"Fat": GREEN, "Gland": RED}
    probe = result_of(
        teach(labelled, ENCODER, colors=colors, embed=Embedding(labelled))
    )
    assert probe.class_names == ("Fat", "Gland")
    assert probe.class_colors == (GREEN, RED)
    likely = probe.probabilities(np.float32([[0, 0, 0, 50], [1, 0, 0, 50]])).argmax(1)
    assert likely.tolist() == [1, 0]


def test_a_class_without_a_region_is_named(labelled):
    colors = {"Gland": RED, "Fat": GREEN, "Nerve": (1, 2, 3)}
    with pytest.raises(NotEnoughDataError, match="No tile of Nerve"):
        result_of(teach(labelled, ENCODER, colors=colors, embed=Embedding(labelled)))


def test_regions_without_a_class_teach_nothing(slides):
    drawn = [LabelledSlide(slides[0], [box(0, 0, "")])]
    assert classes_of(drawn) == {}
    with pytest.raises(NotEnoughDataError, match="give each a class"):
        result_of(teach(drawn, ENCODER))


def test_a_grid_is_laid_over_each_slide(labelled):
    grids = []

    def embed(slide, encoder, grid, cells, *, pooling):
        grids.append((slide, grid))
        yield Progress("embedding tiles", 1, 1)
        values = np.zeros((len(cells), 4), np.float32)
        return Embeddings(values, cells, grid, encoder.encoder_id, pooling)

    result_of(embed_labelled(labelled, ENCODER, ["Gland", "Fat"], embed=embed))
    assert grids == [
        (item.slide, TileGrid.over(item.slide, ENCODER.spec)) for item in labelled
    ]
