"""From drawn regions to a probe: groups, classes, colours, tiles that are missing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import shapely

from histomae.data.classes import OKABE_ITO, ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.errors import (
    ConfigError,
    DataSetError,
    NotEnoughDataError,
    UpsamplingError,
)
from histomae.events import Note, Progress, result_of
from histomae.infer.embed import Embeddings
from histomae.learn.teach import (
    LabelledSlide,
    classes_of,
    embed_labelled,
    embed_pictures,
    teach,
    teach_pictures,
)
from histomae.slides.annotations import Annotation, label_cells
from histomae.slides.grid import TileGrid, TileSpec
from histomae.slides.slide import Slide
from tests.listening import events_of

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


class TestPictures:
    """Pictures of a data set, whose colour tells the class."""

    def embed(self, tiles, *, pooling=None):
        self.batches.append(len(tiles))
        assert tiles.dtype == np.uint8
        assert tiles.shape[1:] == (50, 50, 3)
        return np.hstack([tiles.mean((1, 2)), tiles.std((1, 2))]).astype(np.float32)

    @pytest.fixture
    def encoder(self):
        self.batches = []
        return SimpleNamespace(
            encoder_id="e" * 16,
            spec=TileSpec(50, 1.0),
            poolings=("class_token", "mean"),
            embed=self.embed,
        )

    @pytest.fixture
    def data(self):
        """Of each of 3 classes 4 patients, 3 pictures each: 230 x 120 px, 0.5 µm/px."""
        pictures = tuple(
            LabelledPicture(
                path=Path(f"{label}{patient}{number}.png"),
                label=label,
                patient=f"{label}-{patient}",
                mpp=0.5,
            )
            for label in range(3)
            for patient in range(4)
            for number in range(3)
        )
        return LabelledSet(
            name="Colours",
            root=Path(),
            classes=ClassSet(("A", "B", "C"), (RED, GREEN, OKABE_ITO[0])),
            pictures=pictures,
            read=self.read,
            notes=("Made up.",),
        )

    def read(self, picture):
        if picture.path.name == "bad.png":
            raise DataSetError("bad.png cannot be read.")
        rng = np.random.default_rng(int(picture.path.stem))
        pixels = np.full((120, 230, 3), 60, np.uint8)
        pixels[..., picture.label] = 160
        return pixels + rng.integers(0, 20, pixels.shape, np.uint8)

    def test_a_probe_with_the_names_and_colours_of_the_set(self, data, encoder):
        events, probe = events_of(teach_pictures(data, encoder))
        notes = [event.text for event in events if isinstance(event, Note)]
        assert probe.class_names == ("A", "B", "C")
        assert probe.class_colors == data.classes.colors
        assert (probe.tile_px, probe.mpp) == (50, 1.0)
        assert probe.scores["balanced_accuracy"] == 1.0
        assert probe.scores["grouped_by"] == "patient"
        assert probe.scores["folds"] == 4
        # 115 x 60 µm hold two tiles of 50 µm.
        assert probe.scores["tiles"] == {"A": 24, "B": 24, "C": 24}
        assert probe.scores["regions"] == {"A": 4, "B": 4, "C": 4}
        assert probe.scores["data"] == "Colours"
        assert notes[0] == "Made up."
        assert "have 0.5 µm per pixel, the model's tiles 1: they are res" in notes[1]
        assert sum(self.batches) == 72
        assert max(self.batches) == 32

    def test_tiles_stay_with_their_pictures(self, data, encoder):
        tiles = result_of(embed_pictures(data, encoder))
        assert tiles.labels.tolist() == np.repeat([0, 1, 2], 24).tolist()
        assert tiles.groups.tolist() == np.repeat(np.arange(12), 6).tolist()
        assert tiles.values[:, :3].argmax(1).tolist() == tiles.labels.tolist()

    def test_a_class_without_a_tile_is_left_out(self, data, encoder):
        some = data.among([row for row in range(36) if data.labels[row] != 1])
        tiles = result_of(embed_pictures(some, encoder))
        assert tiles.class_names == ("A", "C")
        assert set(tiles.labels.tolist()) == {0, 1}

    def test_pixel_sizes_are_asked_for_and_compared(self, data, encoder):
        def at(mpp):
            pictures = tuple(replace(one, mpp=mpp) for one in data.pictures)
            return replace(data, pictures=pictures)

        with pytest.raises(ConfigError, match="does not tell the µm per pixel of 000"):
            result_of(embed_pictures(at(None), encoder))
        assert len(result_of(embed_pictures(at(None), encoder, mpp=0.5)).labels) == 72
        with pytest.raises(UpsamplingError, match=r"up to 2 µm per pixel; 1,.*coarser"):
            result_of(embed_pictures(at(2.0), encoder))
        up = result_of(embed_pictures(at(2.0), encoder, allow_upsampling=True))
        assert len(up.labels) == 36 * 9 * 4
        with pytest.raises(NotEnoughDataError, match="holds a tile of 50 µm"):
            result_of(embed_pictures(at(0.1), encoder))

    def test_an_unreadable_picture_is_named_or_skipped(self, data, encoder):
        bad = replace(data.pictures[0], path=Path("bad.png"))
        data = replace(data, pictures=(bad, *data.pictures[1:]))
        with pytest.raises(DataSetError, match=r"bad\.png"):
            result_of(embed_pictures(data, encoder))
        work = list(embed_pictures(data, encoder, skip_unreadable=True))
        assert Note("1 of 36 pictures left out: bad.png cannot be read.") in work

    def test_pictures_without_patients_are_told(self, data, encoder):
        alone = tuple(replace(p, patient=p.path.stem) for p in data.pictures)
        probe = result_of(teach_pictures(replace(data, pictures=alone), encoder))
        assert probe.scores["grouped_by"] == "picture"
        assert "Pictures of one patient may stand" in probe.scores["caveat"]
