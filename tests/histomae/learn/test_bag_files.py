"""Slides as bags: from feature files to a run's list, and back from the list."""

from contextlib import ExitStack

import numpy as np
import pytest

from histomae.config import PretrainConfig
from histomae.errors import ConfigError, FeatureError, NotEnoughDataError, RunError
from histomae.events import Note, Progress
from histomae.exchange.bags import read_bag
from histomae.learn.bag_files import (
    BagEntry,
    bag_id,
    drawn,
    read_entries,
    slide_bags,
    write_entries,
)
from histomae.learn.runs import RunFolder
from histomae.models.slide_checkpoint import name_digits
from tests.listening import events_of


@pytest.fixture
def files(make_features, tmp_path):
    """Five slides of 30 to 70 tiles."""
    return [
        make_features(tmp_path / "features" / f"s{n}.h5", tiles=30 + 10 * n, seed=n)
        for n in range(5)
    ]


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


@pytest.fixture
def config(files):
    return PretrainConfig(slides=(str(files[0].parent),), method="pama", held_out=0.2)


def made(config, run, *, anew=True):
    """Return the settings, the examples and what was said."""
    said, found = events_of(slide_bags(config, run, ExitStack(), anew=anew))
    return (*found, said)


def numbers(examples):
    (bags,) = examples.source.stream([np.arange(len(examples.held_out))])
    return bags.bags


def test_bags_are_those_of_the_files(config, run, files):
    settled, examples, said = made(config, run)
    assert (settled.feature_dim, settled.mpp) == (6, 0.5)
    assert examples.mpp == 0.5
    for bag, path in zip(numbers(examples), files, strict=True):
        expected = read_bag(path)
        np.testing.assert_array_equal(bag.features, expected.features)
        np.testing.assert_array_equal(bag.cells, expected.cells)
        assert bag.slide == path.stem
    assert examples.held_out.sum() == 1
    assert [e for e in said if isinstance(e, Note)] == []
    assert [e.done for e in said if isinstance(e, Progress)] == [0, 1, 2, 3, 4, 5]
    trained = {files[n].stem for n in np.flatnonzero(~examples.held_out)}
    assert examples.seen == tuple(sorted(map(name_digits, trained)))


def test_the_scale_is_that_of_the_tiles_all_slides_alike(config, run, files):
    _, examples, _ = made(config, run)
    means = [read_bag(path).features.astype(float).mean(0) for path in files]
    squares = [(read_bag(path).features.astype(float) ** 2).mean(0) for path in files]
    mean = np.mean(means, 0)
    np.testing.assert_allclose(examples.mean, mean, rtol=1e-12)
    expected = np.sqrt(np.mean(squares, 0) - mean**2)
    np.testing.assert_allclose(examples.std, expected, rtol=1e-9)


def test_what_is_not_kept_in_memory_is_read_again(config, run, files):
    one = read_bag(files[0])
    room = (one.features.nbytes + one.cells.nbytes + 1) / 1e9
    _, little, said = made(config.changed({"cache_gb": room}), run)
    assert any("do not fit into" in e.text for e in said if isinstance(e, Note))
    _, whole, _ = made(config, run)
    for bag, other in zip(numbers(little), numbers(whole), strict=True):
        np.testing.assert_array_equal(bag.features, other.features)
    files[4].unlink()
    with pytest.raises(FeatureError, match="s4"):
        numbers(little)


def test_the_list_comes_back_wherever_the_files_went(config, run, files, tmp_path):
    _, before, _ = made(config, run)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in files:  # renamed, so that they come in another order
        path.rename(moved / f"{9 - int(path.stem[1])}.h5")
    _, after, _ = made_again(config.changed({"slides": (str(moved),)}), run)
    np.testing.assert_array_equal(after.held_out, before.held_out)
    for bag, other in zip(numbers(after), numbers(before), strict=True):
        np.testing.assert_array_equal(bag.features, other.features)


def made_again(config, run):
    """As :func:`made` on resume, with no checkpoint to say what was seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histomae.learn.bag_files._seen", lambda *_, **__: ())
        return made(config, run, anew=False)


def test_a_slide_that_came_later_changes_nothing(config, run, files, make_features):
    _, before, _ = made(config, run)
    make_features(files[0].parent / "a.h5", seed=77)
    _, after, _ = made_again(config, run)
    assert len(after.held_out) == 5
    np.testing.assert_array_equal(after.held_out, before.held_out)


def test_a_slide_that_is_gone_or_changed_is_named(config, run, files, make_features):
    made(config, run)
    make_features(files[2], seed=77)
    with pytest.raises(RunError, match=r"trained on .*s2\.h5"):
        made(config, run, anew=False)


@pytest.mark.parametrize("text", ["", "slide,path\na,b\n", "\0"])
def test_a_damaged_list_is_a_sentence(text, run):
    run.bags_file.write_text(text)
    if not text:
        run.bags_file.unlink()
    with pytest.raises(RunError, match="Start a new run"):
        read_entries(run)


def test_the_list_is_a_table_of_any_names(run):
    entries = [
        BagEntry('a, "b"', "/x/ä\n.h5", "0123", 7, True),
        BagEntry("c", "/y", "4567", 9, False),
    ]
    write_entries(run, entries)
    assert read_entries(run) == entries


@pytest.mark.parametrize(
    ("count", "share", "out"), [(10, 0.1, 1), (10, 0.25, 2), (1, 0.5, 0), (2, 0.5, 1)]
)
def test_a_share_is_held_out_and_never_all(count, share, out):
    entries = [BagEntry(str(n), "", "", 9, False) for n in range(count)]
    chosen = drawn(entries, share, seed=3)
    assert sum(entry.held_out for entry in chosen) == out
    assert drawn(entries, share, seed=3) == chosen
    assert [entry.slide for entry in chosen] == [entry.slide for entry in entries]


def test_regions_of_a_slide_are_held_out_together():
    entries = [
        BagEntry(f"s{number // 3}", f"{number}.h5", f"{number}", 9, False)
        for number in range(30)
    ]
    chosen = drawn(entries, 0.2, seed=0)
    sides = {}
    for entry in chosen:
        sides.setdefault(entry.slide, set()).add(entry.held_out)
    assert sorted(map(sorted, sides.values())) == [[False]] * 8 + [[True]] * 2
    alone = drawn(entries[:3], 0.5, seed=0)  # of one slide none can be
    assert not any(entry.held_out for entry in alone)


def test_a_slide_of_one_tile_and_a_copy_are_left_out(config, run, files, make_features):
    make_features(files[0].parent / "single.h5", tiles=1)
    copy = files[0].parent / "t.h5"
    copy.write_bytes(files[0].read_bytes())
    _, examples, said = made(config, run)
    assert len(examples.held_out) == 5
    notes = [event.text for event in said if isinstance(event, Note)]
    assert notes == [
        "single has a single tile and is left out.",
        f"{copy} holds what {files[0]} does, and is left out.",
    ]


def test_nothing_but_single_tiles(make_features, tmp_path, run):
    path = make_features(tmp_path / "single.h5", tiles=1)
    with pytest.raises(NotEnoughDataError, match="two tiles or more"):
        made(PretrainConfig(slides=(str(path),), method="pama"), run)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"encoder_id": "fedc"}, r"encoder drawn \(fedc\) and drawn \(0123"),
        ({"mpp": 0.69}, r"pixel size 0\.69 µm/px and 0\.5 µm/px"),
        ({"tile_px": 256, "step_px": 256}, "tile size 256 px and 224 px"),
    ],
)
def test_features_of_two_kinds_are_refused_by_name(
    spec, words, config, run, files, make_features
):
    make_features(files[0].parent / "z.h5", **spec)
    with pytest.raises(FeatureError, match=rf"^z has .*s0 has: .*{words}"):
        made(config, run)


def test_a_file_cut_short_is_named(config, run, files):
    files[3].write_bytes(files[3].read_bytes()[:-100])
    with pytest.raises(FeatureError, match=r"s3\.h5 .*Copy the file again"):
        made(config, run)
    assert not run.bags_file.exists()


@pytest.mark.parametrize(
    ("field", "asked", "there"), [("feature_dim", 384, "6"), ("mpp", 0.25, "0.5")]
)
def test_settings_that_are_not_those_of_the_files(field, asked, there, config, run):
    with pytest.raises(ConfigError, match=f"{asked:g} was asked for.* {there}. ") as e:
        made(config.changed({field: asked}), run)
    assert e.value.field == field


def test_an_id_is_of_what_is_in_a_bag(files):
    one, other = (read_bag(path) for path in files[:2])
    assert bag_id(one) == bag_id(read_bag(files[0])) != bag_id(other)
