"""What TensorBoard is given is what events.jsonl has, whatever happened on the way."""

import io
import os
import signal
import struct
import time
from dataclasses import replace

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event as Record
from tensorboardX.proto.event_pb2 import SessionLog

from histomae.config import PretrainConfig
from histomae.events import Finished, HeldOut, Note, Preview, Started, Step
from histomae.learn.pretrain import run_in
from histomae.learn.runs import RunFolder
from histomae.learn.tensorboard import TensorBoard


def crc32c(data):
    """The check sum of Castagnoli, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


def check(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def file_of(run):
    """The one that is not empty, the last by its name: TensorBoard reads it last."""
    *emptied, file = sorted(run.tensorboard.iterdir())
    assert len(emptied) <= 1
    assert all(old.stat().st_size == 0 for old in emptied)
    assert file.name.startswith("events.out.tfevents.")
    return file


def records(run):
    """Read the file as its format says; half a record at the end is left out."""
    data, found = file_of(run).read_bytes(), []
    while len(data) >= 12:
        (length,) = struct.unpack("<Q", data[:8])
        body, end = data[12 : 12 + length], data[12 + length : 16 + length]
        if len(end) < 4:
            break
        assert data[8:12] == check(data[:8])
        assert end == check(body[:300]) or length > 300  # pictures would take long
        found.append(Record.FromString(body))
        data = data[16 + length :]
    return found


def numbers(run):
    """Return the curves in the file: step and value, by name."""
    curves = {}
    for record in records(run):
        for value in record.summary.value:
            if value.HasField("simple_value"):
                name = value.tag.removeprefix("run/")
                curves.setdefault(name, []).append((record.step, value.simple_value))
    return curves


def pictures(run):
    return [
        (record.step, value.image)
        for record in records(run)
        for value in record.summary.value
        if value.HasField("image")
    ]


def recorded(run):
    """Return the same of events.jsonl, as 32-bit floats."""
    curves = {}
    for event in run.events():
        told = {}
        if isinstance(event, Step):
            told = {
                "loss": event.loss,
                "lr": event.lr,
                "grad_norm": event.grad_norm,
                "images_per_s": event.images_per_s,
                **event.logged,
            }
        if isinstance(event, HeldOut):
            told = {"held_out_loss": event.loss}
        for name, value in told.items():
            rounded = struct.unpack("f", struct.pack("f", value))[0]
            curves.setdefault(name, []).append((event.step, rounded))
    return curves


def started(step):
    return Started("mae", step, 9, 90, 10, 7, "cpu", "f32", 0.5)


def step(number, **logged):
    return Step(number, 9, number / 3, 1 / number, 1e-4, 1.0, 10.0, 2.0, logged)


@pytest.fixture
def run(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.create(PretrainConfig(slides=("a.svs",)))
    return made


@pytest.fixture
def recording(run):
    """Return a function that begins to record events, as a new process would."""

    def begin(from_step):
        board = TensorBoard(run)

        def record(*events):
            for event in events:
                run.append(event)
                board.write(event)

        record(started(from_step))
        return record

    return begin


@pytest.mark.usefixtures("tiny_encoder")
class TestTraining:
    def test_everything_recorded_is_there(self, tmp_path, quick):
        run = RunFolder(tmp_path / "run")
        run.create(quick())
        list(run_in(run))
        assert set(numbers(run)) == {
            *("loss", "held_out_loss", "lr", "grad_norm", "images_per_s")
        }
        assert numbers(run) == recorded(run)
        shown = [event for event in run.events() if isinstance(event, Preview)]
        assert [number for number, _ in pictures(run)] == [e.step for e in shown]
        for event, (_, image) in zip(shown, pictures(run), strict=True):
            assert image.encoded_image_string == (run.path / event.path).read_bytes()
            with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
                assert picture.size == (image.width, image.height)

    def test_killed_and_resumed_it_is_cut_back(self, tmp_path, quick):
        run = RunFolder(tmp_path / "run")
        run.create(quick())
        work = run_in(run)
        for event in work:
            if isinstance(event, Step) and event.step == 5:
                break
        work.close()  # its last checkpoint is of step 3
        with file_of(run).open("ab") as file:
            file.write(struct.pack("<Q", 10**6) + b"half a record")
        assert [number for number, _ in numbers(run)["loss"]] == [1, 2, 3, 4, 5]
        first = records(run)[3]

        list(run_in(run))
        assert [e.step for e in run.events() if isinstance(e, Started)] == [0, 3]
        assert numbers(run) == recorded(run)
        assert [number for number, _ in pictures(run)] == [0, 4, 8]
        assert first in records(run)  # with the time when it was

    def test_no_room_for_it_is_no_matter(self, tmp_path, quick, caplog):
        run = RunFolder(tmp_path / "run")
        run.create(quick())
        run.tensorboard.write_text("a file where the folder should be")
        list(run_in(run))
        assert run.state == "done"
        assert len(recorded(run)["loss"]) == 8
        assert not any(isinstance(event, Note) for event in run.events())
        assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_what_a_method_logs_is_there(run, recording):
    recording(0)(
        step(1, teacher_entropy=5.5), step(2, teacher_entropy=5.25, queue=64.0)
    )
    assert numbers(run)["teacher_entropy"] == [(1, 5.5), (2, 5.25)]
    assert numbers(run) == recorded(run)


def test_a_file_begins_as_readers_expect(run, recording):
    earliest = time.time()
    recording(0)(step(1))
    version, start, one = records(run)
    assert (version.file_version, version.step) == ("brain.Event:2", 0)
    assert (start.session_log.status, start.step) == (SessionLog.START, 0)
    assert earliest <= version.wall_time <= one.wall_time <= time.time()


def test_begun_again_nothing_is_kept(run, recording):
    recording(0)(HeldOut(0, 1.5), step(1), step(2))
    run.cut_back(None)
    recording(0)(HeldOut(0, 1.25), step(1))
    assert numbers(run) == recorded(run)
    assert numbers(run)["held_out_loss"] == [(0, 1.25)]


def test_files_do_not_pile_up(run, recording):
    for number in range(5):
        recording(number)(step(number + 1))
    assert len(list(run.tensorboard.iterdir())) == 2
    assert len(numbers(run)["loss"]) == 5


def test_what_was_measured_at_the_checkpoint_is_kept(run, recording):
    recording(0)(step(1), step(2), HeldOut(2, 0.5), step(3), Finished(3, "stopped"))
    run.cut_back(2)
    recording(2)(replace(step(3), loss=0.125))
    assert numbers(run)["held_out_loss"] == [(2, 0.5)]
    assert [value for _, value in numbers(run)["loss"]] == [1.0, 0.5, 0.125]
    assert numbers(run) == recorded(run)


def test_a_start_that_was_killed_spoils_nothing(run, recording):
    recording(0)(step(1), step(2))
    (run.tensorboard / "next").write_bytes(b"half a fi")
    recording(2)(step(3))
    assert len(numbers(run)["loss"]) == 3


@pytest.mark.parametrize("damage", [b"\0" * 64, b"\xff" * 64, b"\0" * 5])
def test_a_damaged_end_is_left_out(run, recording, damage):
    recording(0)(step(1), step(2))
    with file_of(run).open("ab") as file:
        file.write(damage)
    recording(2)(step(3))
    assert len(numbers(run)["loss"]) == 3


def test_a_picture_that_is_gone_is_left_out(run, recording):
    recording(0)(Preview(0, "previews/gone.png"), step(1))
    assert pictures(run) == []
    assert len(numbers(run)["loss"]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on files' sizes")
def test_a_full_disk_leaves_a_gap(run, recording):
    import resource

    record = recording(0)
    record(step(1))
    size = file_of(run).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        record(step(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file_of(run).stat().st_size == size
    record(step(3))
    assert [number for number, _ in numbers(run)["loss"]] == [1, 3]
    assert [number for number, _ in recorded(run)["loss"]] == [1, 2, 3]
