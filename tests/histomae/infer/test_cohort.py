"""A cohort is embedded slide by slide, goes on where it ended, and mixes nothing."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from histomae.errors import FeatureError
from histomae.events import Note, Progress, result_of
from histomae.exchange.features import read_features
from histomae.infer.cohort import (
    CohortMeter,
    SlideTask,
    cohort_mpp,
    embed_cohort,
    embed_task,
    plan_cohort,
)
from histomae.infer.embed import SlideEmbedding
from histomae.infer.encoder import TileEncoder
from histomae.slides.slide import Slide
from histomae.slides.tissue import TissueParams, remember_params


@pytest.fixture
def embedding(encoder):
    return SlideEmbedding(encoder)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def plan(cohort, embedding, out):
    return result_of(plan_cohort(cohort, embedding, out))


@pytest.fixture
def done(plan, embedding):
    return result_of(embed_cohort(plan, embedding))


def test_the_plan_counts_before_anything_is_computed(plan, cohort, out, encoder):
    assert [task.slide for task in plan.tasks] == cohort
    assert [task.out.name for task in plan.tasks] == ["a.h5", "b.h5", "c.h5"]
    assert plan.finished == plan.failures == ()
    assert plan.tiles == 3 * plan.tasks[0].tiles > 200
    assert not out.exists()


def test_each_slide_becomes_a_file(done, plan, embedding, slide, run):
    assert done.written == tuple(task.out for task in plan.tasks)
    assert done.failures == ()
    _, alone = run(embedding.features_of(slide))
    for task in plan.tasks:
        found = read_features(task.out)
        assert found.header == replace(alone.header, slide=task.slide.stem)
        np.testing.assert_array_equal(found.values, alone.values)


def test_progress_is_of_the_whole_cohort(plan, embedding, run):
    events, _ = run(embed_cohort(plan, embedding))
    progress = [event for event in events if isinstance(event, Progress)]
    counts = [event.done for event in progress]
    assert counts == sorted(counts)
    assert {event.total for event in progress} == {plan.tiles}
    assert counts[-1] == plan.tiles
    assert progress[-1].seconds_left == 0
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes[0] == f"a.tiff: {plan.tasks[0].tiles} tiles"


def test_time_left_is_told_from_all_slides(monkeypatch):
    clock = iter([100.0, 110.0, 120.0])
    time = SimpleNamespace(monotonic=clock.__next__)
    monkeypatch.setattr("histomae.infer.cohort.time", time)
    one, other = (SlideTask(name, name, 50) for name in ("a", "b"))
    meter = CohortMeter(100)
    event = meter.at(one, 20)
    assert (event.done, event.per_s, event.seconds_left) == (20, 2.0, 40.0)
    event = meter.at(other, 40)
    assert (event.done, event.per_s, event.seconds_left) == (
        60,
        3.0,
        pytest.approx(40 / 3),
    )


def test_news_that_comes_late_sets_nothing_back():
    task = SlideTask("a", "a", 50)
    meter = CohortMeter(50)
    assert [meter.at(task, done).done for done in (20, 50, 40)] == [20, 50, 50]


# Going on --------------------------------------------------------------------


def test_what_is_done_is_not_done_again(done, cohort, embedding, out):
    (out / "b.h5").unlink()
    before = (out / "a.h5").stat().st_mtime_ns
    plan = result_of(plan_cohort(cohort, embedding, out))
    assert [task.slide.name for task in plan.tasks] == ["b.tiff"]
    assert [path.name for path in plan.finished] == ["a.tiff", "c.tiff"]
    again = result_of(embed_cohort(plan, embedding))
    assert again.written == (out / "b.h5",)
    assert (out / "a.h5").stat().st_mtime_ns == before


def test_what_counts_as_tissue_goes_along_with_a_slide(cohort, embedding, out):
    """A worker on another machine remembers nothing of what was set here."""
    with Slide.open(cohort[0]) as slide:
        remember_params(slide, TissueParams(closing_um=8.0))
        tasks = result_of(plan_cohort(cohort, embedding, out)).tasks
        remember_params(slide, TissueParams())
        assert tasks[0].tissue == TissueParams(closing_um=8.0)
        result_of(embed_task(tasks[0], embedding))
    assert read_features(tasks[0].out).header.tissue["closing_um"] == 8.0
    said = TissueParams(least_density=0.1)
    tasks = result_of(plan_cohort(cohort[1:], embedding, out, tissue=said)).tasks
    assert {task.tissue for task in tasks} == {said}


def test_broken_off_it_leaves_whole_files_alone(plan, embedding, out, cohort):
    work = embed_cohort(plan, embedding)
    for event in work:
        if isinstance(event, Progress) and event.done > plan.tasks[0].tiles:
            break
    work.close()
    assert [path.name for path in out.iterdir()] == ["a.h5"]
    read_features(out / "a.h5")
    rest = result_of(plan_cohort(cohort, embedding, out))
    assert [task.slide.name for task in rest.tasks] == ["b.tiff", "c.tiff"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "mean"}, "pooling class_token and mean"),
        ({"min_tissue": 0.7}, "way: tissue's min_tissue 0.5 and 0.7. Choose"),
    ],
)
def test_another_way_is_refused_with_what_to_do(
    settings, message, done, cohort, encoder, out
):
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FeatureError, match=message) as refused:
        result_of(plan_cohort(cohort, SlideEmbedding(encoder, **settings), out))
    assert str(refused.value).startswith(f"{out / 'a.h5'} was made in another way")
    assert str(refused.value).endswith("delete the file to make it anew.")
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_another_encoder_is_refused_also_beside_other_slides(
    done, cohort, other_encoder, out, tmp_path
):
    shutil.copy(cohort[0], tmp_path / "d.tiff")
    work = plan_cohort([tmp_path / "d.tiff"], SlideEmbedding(other_encoder), out)
    with pytest.raises(
        FeatureError, match=rf"encoder .* and .*{other_encoder.encoder_id}"
    ):
        result_of(work)


def test_another_slide_of_the_same_name_is_refused(
    done, cohort, embedding, out, make_slide
):
    make_slide(size=(600, 600), path=cohort[0])
    with pytest.raises(FeatureError, match=r"a\.h5 was made in another way: slide "):
        result_of(plan_cohort(cohort, embedding, out))


def test_precision_is_no_other_way(done, cohort, checkpoint, out):
    half = TileEncoder(checkpoint, torch.device("cpu"), precision="bf16")
    plan = result_of(plan_cohort(cohort, SlideEmbedding(half), out))
    assert len(plan.finished) == 3


def test_a_damaged_file_in_the_way_is_refused(done, cohort, embedding, out):
    (out / "b.h5").write_bytes((out / "b.h5").read_bytes()[:9000])
    with pytest.raises(FeatureError, match=r"b\.h5 is damaged.*delete it"):
        result_of(plan_cohort(cohort, embedding, out))


# Bad slides ------------------------------------------------------------------


def test_bad_slides_do_not_end_the_cohort(cohort, embedding, out, make_slide, run):
    folder = cohort[0].parent
    blank = np.full((600, 600, 3), 245, np.uint8)
    make_slide(blank, path=folder / "blank.tiff")
    make_slide(size=(600, 600), mpp=None, path=folder / "sizeless.tiff")
    make_slide(size=(600, 600), mpp=2.0, path=folder / "coarse.tiff")
    (folder / "torn.tiff").write_bytes(cohort[0].read_bytes()[:2000])
    slides = sorted(folder.iterdir())
    events, plan = run(plan_cohort(slides, embedding, out))
    assert [task.slide for task in plan.tasks] == cohort
    reasons = {failure.slide.name: failure.reason for failure in plan.failures}
    assert list(reasons) == ["blank.tiff", "coarse.tiff", "sizeless.tiff", "torn.tiff"]
    assert "no tile to look at" in reasons["blank.tiff"]
    assert "pixel size" in reasons["sizeless.tiff"]
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == list(reasons.values())


def test_a_slide_that_turns_bad_later_does_not_either(
    plan, embedding, out, cohort, run
):
    cohort[1].write_bytes(b"gone")
    events, done = run(embed_cohort(plan, embedding))
    assert [path.name for path in done.written] == ["a.h5", "c.h5"]
    (failure,) = done.failures
    assert failure.slide == cohort[1]
    assert failure.reason in [e.text for e in events if isinstance(e, Note)]
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total


def test_a_full_disk_ends_it(plan, embedding, monkeypatch):
    def full(path, features):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("histomae.infer.cohort.write_features", full)
    with pytest.raises(OSError, match="No space left"):
        result_of(embed_cohort(plan, embedding))


# Pixel sizes -----------------------------------------------------------------


def test_what_a_person_said_of_a_slide_goes_with_the_task(
    embedding, out, make_slide, tissue_path, tmp_path
):
    with Slide.open(tissue_path) as opened:
        pixels = opened.read_region((0, 0), (600, 400), 0.5)
    path = make_slide(pixels, mpp=None, path=tmp_path / "sizeless.tiff")
    plan = result_of(plan_cohort([path], embedding, out, slide_mpp=0.5))
    assert plan.tasks[0].slide_mpp == (0.5, 0.5)
    done = result_of(embed_cohort(plan, embedding))
    header = read_features(done.written[0]).header
    assert (header.slide_mpp, header.mpp_source) == ((0.5, 0.5), "given")


def test_the_cohorts_own_pixel_size(cohort, make_slide, tmp_path):
    assert result_of(cohort_mpp(cohort)) == 0.5
    coarse = make_slide(size=(300, 300), mpp=(0.7, 0.8), path=tmp_path / "c.tiff")
    sizeless = make_slide(size=(300, 300), mpp=None, path=tmp_path / "s.tiff")
    (tmp_path / "torn.tiff").write_bytes(b"torn")
    slides = [*cohort, coarse, sizeless, tmp_path / "torn.tiff"]
    assert result_of(cohort_mpp(slides)) == 0.8
    assert result_of(cohort_mpp(slides, 0.9)) == 0.9
    assert result_of(cohort_mpp([tmp_path / "torn.tiff"])) == 0.5
