"""Random crops of tissue: enough of it, little overlap, and the same ones again."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import openslide
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histomae.errors import (
    MissingMppError,
    NotEnoughDataError,
    RunError,
    UpsamplingError,
)
from histomae.events import Note, Progress, result_of
from histomae.slides.crops import (
    CropManifest,
    CropSpec,
    build_manifest,
    hold_out,
    iou,
    sample_crops,
)
from histomae.slides.slide import Slide
from histomae.slides.tissue import TissueMask, TissueParams, tissue_mask
from tests.listening import events_of

SPEC = CropSpec(crop_px=112, mpp=1.0, per_slide=60)


@pytest.fixture
def slide(section_slide):
    with Slide.open(section_slide[0]) as opened:
        yield opened


@pytest.fixture(scope="session")
def slide_paths(section, make_slide):
    """Three slides with different tissue, at 2 µm/px."""
    paths = []
    for seed in (1, 2, 3):
        picture, _ = section(seed=seed)
        paths.append(make_slide(picture.repeat(4, 0).repeat(4, 1), mpp=2.0))
    return paths


@pytest.fixture
def slides(slide_paths):
    opened = [Slide.open(path) for path in slide_paths]
    yield opened
    for each in opened:
        each.close()


@pytest.fixture
def blank(make_slide):
    pixels = np.full((800, 900, 3), 245, np.uint8)
    with Slide.open(make_slide(pixels, mpp=2.0, factors=(1,))) as opened:
        yield opened


def plain_iou(one, other, size):
    wide = min(one[0], other[0]) + size[0] - max(one[0], other[0])
    high = min(one[1], other[1]) + size[1] - max(one[1], other[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / (2 * size[0] * size[1] - shared)


def crops_of(manifest, index):
    return manifest.xy_l0[manifest.slide_index == index]


# ---- drawing


@pytest.mark.parametrize("mpp", [1.0, 1.7])
def test_crops_keep_to_the_rules(slide, mpp):
    spec = replace(SPEC, mpp=mpp, min_tissue=0.6, max_iou=0.2)
    tissue = tissue_mask(slide)
    corners = sample_crops(slide, tissue, spec)
    assert len(corners) == spec.per_slide
    size = (112 * mpp, 112 * mpp)
    wide, high = slide.dimensions
    for number, (x, y) in enumerate(corners):
        assert 0 <= x <= wide - size[0]
        assert 0 <= y <= high - size[1]
        # Count the tissue in pixels of the mask, 8 by 8 level-0 pixels each.
        box = np.s_[
            round(y / 8) : round((y + size[1]) / 8),
            round(x / 8) : round((x + size[0]) / 8),
        ]
        assert tissue.mask[box].mean() > 0.6 - 0.05
        for other in corners[:number]:
            assert plain_iou((x, y), other, size) <= 0.2
    np.testing.assert_array_equal(corners, np.rint(corners))


def test_the_middle_holds_as_much_tissue_where_it_is_seen_too(slide):
    """Places seen at 1, 2 and 3 µm/px, on tissue like a chess board."""
    wide, high = slide.dimensions
    y, x = np.mgrid[: high // 8, : wide // 8] // 20
    board = TissueMask((x + y) % 2 == 0, (8.0, 8.0), 64.0)
    spec = replace(SPEC, mpp=3.0, views_mpp=(2.0, 1.0), min_tissue=0.45)

    def least(corners):
        """Return the least share of tissue at each pixel size."""
        assert len(corners) > 5
        shares = []
        for side in (336, 224, 112):
            first = corners + (336 - side) / 2
            shares.append(board.fraction(np.hstack([first, first + side])).min())
        return shares

    assert min(least(sample_crops(slide, board, spec))) >= 0.45
    coarse, _, fine = least(sample_crops(slide, board, replace(spec, views_mpp=())))
    assert fine < 0.2 < 0.45 <= coarse
    with pytest.raises(UpsamplingError):
        result_of(build_manifest([slide], replace(spec, views_mpp=(0.2,))))


def test_iou_matches_a_plain_count():
    random = np.random.default_rng(0)
    others = random.uniform(-30, 30, (50, 2))
    shares = iou(np.array([3.0, -4.0]), others, np.array([20.0, 14.0]))
    for other, share in zip(others, shares, strict=True):
        assert share == pytest.approx(plain_iou((3, -4), other, (20, 14)))


def test_crops_are_square_in_micrometres(section, make_slide):
    picture, _ = section()
    pixels = picture.repeat(4, 0).repeat(2, 1)  # 2 µm high and 4 µm wide
    with Slide.open(make_slide(pixels, mpp=(4.0, 2.0), factors=(1,))) as slide:
        tissue = tissue_mask(slide)
        spec = CropSpec(crop_px=50, mpp=4.0, per_slide=40)
        corners = sample_crops(slide, tissue, spec)
        size = np.array([50, 100])  # level-0 pixels
        assert (corners >= 0).all()
        assert (corners + size <= slide.dimensions).all()
        shares = tissue.fraction(np.hstack([corners, corners + size]))
        assert (shares >= 0.5).all()
        for number, corner in enumerate(corners):
            for other in corners[:number]:
                assert plain_iou(corner, other, size) <= 0.25
        crop = slide.read_region(tuple(corners[0]), (50, 50), spec.mpp)
        assert crop.shape == (50, 50, 3)


def test_crops_cover_as_much_at_every_mpp(slide):
    tissue = tissue_mask(slide)
    for mpp, side in ((1.0, 112), (2.0, 224), (3.5, 392)):
        spec = replace(SPEC, mpp=mpp, per_slide=20)
        for x, y in sample_crops(slide, tissue, spec):
            share = tissue.fraction(np.array([[x, y, x + side, y + side]]))[0]
            assert share >= 0.5


def test_crops_stay_within_the_bounds(stand_in, section):
    picture, _ = section()
    properties = {
        openslide.PROPERTY_NAME_MPP_X: "8",
        openslide.PROPERTY_NAME_MPP_Y: "8",
        openslide.PROPERTY_NAME_BOUNDS_X: "100",
        openslide.PROPERTY_NAME_BOUNDS_Y: "120",
        openslide.PROPERTY_NAME_BOUNDS_WIDTH: "90",
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT: "110",
    }
    slide, _ = stand_in([picture], properties)
    spec = CropSpec(crop_px=12, mpp=8.0, per_slide=30)
    corners = sample_crops(slide, tissue_mask(slide), spec)
    assert len(corners) == 30
    assert (corners >= (100, 120)).all()
    assert (corners + 12 <= (190, 230)).all()


def test_large_pieces_get_more_crops(make_slide):
    with Slide.open(make_slide(size=(1600, 800), mpp=1.0, factors=(1,))) as slide:
        mask = np.zeros((100, 200), bool)
        mask[5:95, 5:95] = True  # 9 parts
        mask[35:65, 150:180] = True  # 1 part
        tissue = TissueMask(mask, (8.0, 8.0), 64.0)
        spec = CropSpec(crop_px=24, mpp=1.0, per_slide=300)
        corners = sample_crops(slide, tissue, spec)
    left = (corners[:, 0] < 800).mean()
    assert left == pytest.approx(0.9, abs=0.05)


def test_crops_are_drawn_again_from_the_same_seed(slide):
    tissue = tissue_mask(slide)
    first = sample_crops(slide, tissue, SPEC)
    np.testing.assert_array_equal(first, sample_crops(slide, tissue, SPEC))
    other = sample_crops(slide, tissue, replace(SPEC, seed=1))
    assert not np.array_equal(first, other)


def test_no_room_gives_fewer_crops(slide):
    spec = replace(SPEC, per_slide=600)
    corners = sample_crops(slide, tissue_mask(slide), spec)
    assert 100 < len(corners) < 600


def test_a_crop_larger_than_the_slide_is_none(slide):
    spec = replace(SPEC, mpp=100.0)
    assert sample_crops(slide, tissue_mask(slide), spec).shape == (0, 2)


# ---- holding out


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("side", [700, 1500, 4000])
def test_held_out_crops_overlap_no_training_crop(share, side):
    for seed in range(5):
        random = np.random.default_rng(seed)
        corners = random.integers(0, side - 200, (min(200, side // 20), 2)).astype(
            float
        )
        spec = replace(SPEC, held_out=share, seed=seed)
        split = hold_out(corners, np.array([224.0, 180.0]), spec, "a slide")
        assert split.train.any()
        assert not (split.train & split.out).any()
        assert split.out.sum() in (0, round(share * len(corners)))
        for corner in corners[split.out]:
            for other in corners[split.train]:
                assert plain_iou(corner, other, (224, 180)) == 0
        # Only what overlaps a held-out crop is left out of both.
        for corner in corners[~split.train & ~split.out]:
            touched = [plain_iou(corner, o, (224, 180)) for o in corners[split.out]]
            assert max(touched) > 0


def test_held_out_crops_are_many_neighbours(slide):
    spec = replace(SPEC, per_slide=200)
    corners = sample_crops(slide, tissue_mask(slide), spec)
    split = hold_out(corners, np.full(2, 112.0), spec, slide.slide_id)
    assert split.out.sum() == 20
    assert split.train.sum() > 0.7 * len(corners)


def test_nothing_is_held_out_where_nothing_would_be_left():
    corners = np.array([[0.0, 0.0], [5.0, 5.0], [3.0, 9.0]])
    split = hold_out(corners, np.full(2, 20.0), replace(SPEC, held_out=0.5), "a")
    assert split.train.all()
    assert not split.out.any()
    split = hold_out(np.empty((0, 2)), np.full(2, 20.0), SPEC, "a")
    assert len(split.train) == len(split.out) == 0


def test_nothing_is_held_out_if_nothing_is_wanted(slide):
    corners = sample_crops(slide, tissue_mask(slide), SPEC)
    split = hold_out(corners, np.full(2, 112.0), replace(SPEC, held_out=0), "a")
    assert split.train.all()


# ---- the manifest

COHORT = CropSpec(crop_px=56, mpp=2.0, per_slide=30, held_out=0.2)


def test_manifest_of_several_slides(slides):
    events, manifest = events_of(build_manifest(slides, COHORT))
    assert len(manifest) == len(manifest.slide_index) == len(manifest.xy_l0)
    assert set(manifest.slide_index) == {0, 1, 2}
    assert manifest.held_out.sum() == 3 * 6
    assert [entry.slide_id for entry in manifest.slides] == [s.slide_id for s in slides]
    entry = manifest.slides[0]
    assert entry.path == str(slides[0].path.resolve())
    assert (entry.mpp_x, entry.mpp_y, entry.mpp_source) == (2.0, 2.0, "file")
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total) for event in progress] == [
        (0, 3),
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert progress[-1].per_s > 0
    assert not any(isinstance(event, Note) for event in events)
    for index in range(3):
        mine = manifest.slide_index == index
        for held in manifest.xy_l0[mine & manifest.held_out]:
            for train in manifest.xy_l0[mine & ~manifest.held_out]:
                assert plain_iou(held, train, (56, 56)) == 0


def test_a_manifest_says_what_counted_as_tissue(slides, tmp_path):
    params = TissueParams(least_density=0.3, closing_um=0.0)
    with Slide.open(slides[0].path, tissue=params) as slide:
        manifest = result_of(build_manifest([slide, slides[1]], COHORT))
    usual = result_of(build_manifest(slides[:2], COHORT))
    assert [entry.tissue for entry in manifest.slides] == [params.text, ""]
    assert not np.array_equal(manifest.xy_l0, usual.xy_l0)
    manifest.save(tmp_path / "crops.parquet")
    assert CropManifest.load(tmp_path / "crops.parquet").slides == manifest.slides


def test_neighbours_have_one_region(slides):
    manifest = result_of(build_manifest(slides, replace(COHORT, region_px=200)))
    assert not manifest.reads_regions
    side_l0 = 200 * COHORT.mpp / 2.0
    for xy_l0, corner in zip(manifest.xy_l0, manifest.region_xy_l0, strict=True):
        assert (corner % side_l0 == 0).all()
        assert ((xy_l0 >= corner) & (xy_l0 < corner + side_l0)).all()
    places = list(
        zip(manifest.slide_index, *manifest.region_xy_l0.T.tolist(), strict=True)
    )
    numbers = manifest.region.tolist()
    assert sorted(set(numbers)) == list(range(len(set(places))))
    assert len(set(zip(places, numbers, strict=True))) == len(set(places))


DENSE = replace(
    COHORT, sampler="region-dense", region_px=224, crops_per_region=9, per_slide=40
)


def test_many_crops_come_from_few_regions(slides):
    manifest = result_of(build_manifest(slides, DENSE))
    assert manifest.reads_regions
    factor = DENSE.mpp / 2.0
    away_px = (manifest.xy_l0 - manifest.region_xy_l0) / factor
    np.testing.assert_array_equal(away_px, away_px.round())
    assert (away_px >= 0).all()
    assert (away_px + DENSE.crop_px <= DENSE.region_px).all()
    assert len(manifest) / (manifest.region.max() + 1) > 3
    assert (np.bincount(manifest.region) <= 9).all()
    for index, slide in enumerate(slides):
        mine = manifest.slide_index == index
        assert 0 < mine.sum() <= 40
        corners = manifest.xy_l0[mine]
        boxes = np.hstack([corners, corners + DENSE.crop_px * factor])
        assert (tissue_mask(slide).fraction(boxes) >= DENSE.min_tissue).all()
        for held in manifest.xy_l0[mine & manifest.held_out]:
            for train in manifest.xy_l0[mine & ~manifest.held_out]:
                assert plain_iou(held, train, (56, 56)) == 0
    again = result_of(build_manifest(slides[1:2], DENSE))
    np.testing.assert_array_equal(crops_of(manifest, 1), crops_of(again, 0))


def test_crops_of_a_slide_depend_on_no_other_slide(slides):
    whole = result_of(build_manifest(slides, COHORT))
    turned = result_of(build_manifest(slides[::-1], COHORT))
    alone = result_of(build_manifest(slides[1:2], COHORT))
    for index in range(3):
        np.testing.assert_array_equal(
            crops_of(whole, index), crops_of(turned, 2 - index)
        )
    np.testing.assert_array_equal(crops_of(whole, 1), crops_of(alone, 0))
    np.testing.assert_array_equal(
        whole.held_out[whole.slide_index == 1], alone.held_out
    )
    assert not np.array_equal(crops_of(whole, 0), crops_of(whole, 1))


def test_crops_are_cut_again_from_a_saved_manifest(slides, tmp_path):
    manifest = result_of(build_manifest(slides, replace(COHORT, views_mpp=(2.0,))))
    path = tmp_path / "run" / "crops.parquet"
    manifest.save(path)
    again = CropManifest.load(path)
    for field in dataclasses.fields(CropManifest):
        one, other = getattr(manifest, field.name), getattr(again, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other
    assert [left.name for left in path.parent.iterdir()] == ["crops.parquet"]

    def cut(listed, number):
        entry = listed.slides[listed.slide_index[number]]
        with Slide.open(entry.path, mpp=(entry.mpp_x, entry.mpp_y)) as slide:
            xy_l0 = tuple(listed.xy_l0[number])
            return slide.read_region(xy_l0, (listed.crop_px,) * 2, listed.mpp)

    for number in range(0, len(manifest), 25):
        crop = cut(manifest, number)
        np.testing.assert_array_equal(crop, cut(again, number))
        assert (crop.mean(-1) < 225).mean() > 0.3  # it shows tissue


def test_a_blank_slide_yields_no_crops_and_a_note(slides, blank):
    events, manifest = events_of(build_manifest([blank, slides[0]], COHORT))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert len(notes) == 1
    assert notes[0].startswith(f"{blank.path.name}: 0 crops instead of 30")
    assert set(manifest.slide_index) == {1}
    assert len(manifest.slides) == 2


def test_nothing_but_blank_slides_is_refused(blank):
    with pytest.raises(NotEnoughDataError, match=r"No crop of tissue.*Choose"):
        result_of(build_manifest([blank], COHORT))
    with pytest.raises(NotEnoughDataError):
        result_of(build_manifest([], COHORT))


def test_manifest_refuses_finer_pixels_than_there_are(slides):
    finer = replace(COHORT, mpp=1.0)
    with pytest.raises(UpsamplingError):
        result_of(build_manifest(slides, finer))
    allowed = replace(finer, allow_upsampling=True, per_slide=5)
    assert len(result_of(build_manifest(slides[:1], allowed))) > 0


def test_manifest_needs_pixel_sizes(make_slide):
    with Slide.open(make_slide(mpp=None)) as slide, pytest.raises(MissingMppError):
        result_of(build_manifest([slide], COHORT))


def test_manifest_can_be_stopped(slides):
    work = build_manifest(slides, COHORT)
    assert next(work) == Progress("finding tissue", 0, 3)
    work.close()


def not_a_manifest(path, kind):
    table = pa.table({"slide_index": [0], "x_l0": [1.0], "y_l0": [1.0]})
    if kind == "text":
        path.write_text("no parquet")
    elif kind == "bare":
        pq.write_table(table, path)
    elif kind == "headless":
        pq.write_table(table.replace_schema_metadata({"histomae": "{"}), path)
    elif kind == "columns":
        header = json.dumps({"slides": [], "crop_px": 1, "mpp": 1})
        pq.write_table(table.replace_schema_metadata({"histomae": header}), path)


@pytest.mark.parametrize("kind", ["missing", "text", "bare", "headless", "columns"])
def test_what_is_no_manifest_is_refused(tmp_path, kind):
    path = tmp_path / "crops.parquet"
    not_a_manifest(path, kind)
    with pytest.raises(RunError, match=r"crops\.parquet is no list of crops.*new run"):
        CropManifest.load(path)


# ---- a real slide


@pytest.mark.real_data
def test_real_tumour_slide_is_cropped(shared_data):
    with Slide.open(shared_data / "slides/her2st/her2st-C2.tiff") as slide:
        spec = CropSpec(crop_px=224, mpp=slide.native_mpp, per_slide=200)
        manifest = result_of(build_manifest([slide], spec))
        assert len(manifest) > 150
        assert manifest.held_out.sum() == 20
        for xy in manifest.xy_l0[::40]:
            crop = slide.read_region(tuple(xy), (224, 224), spec.mpp)
            assert crop.std() > 20
