"""The numbers and pictures of a run as TensorBoard reads them.

One file in the run's folder ``tensorboard``, a record for each event that has figures.
Every record is written at once and whole, or not at all: a killed process leaves half a
record at most, over which readers do not stumble, and a disk that refuses leaves a gap.
(tensorboardX's own writer has a thread for this, which dies where the disk refuses; the
training would then wait for it without end.)

Whoever goes on from a checkpoint begins a new file with what the last one holds up to
that step. TensorBoard has a record that means "forget what came after" (purge_step),
but the reader that it usually takes does not listen to it: held-out losses and pictures
of steps that are no more would stay.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from PIL import Image
from tensorboardX.proto.event_pb2 import Event as Record
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from histomae.events import Event, HeldOut, Preview, Started, Step
from histomae.files import append_whole, write_beside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from histomae.learn.runs import RunFolder

logger = logging.getLogger(__name__)

#: Before each name, so that TensorBoard shows everything in one group.
GROUP = "run/"
#: How TensorBoard knows its files.
PATTERN = "events.out.tfevents.*"
#: The layout of records that is understood everywhere.
VERSION = "brain.Event:2"
#: Bytes before and after what a record holds: length and check sum; check sum.
HEAD, TAIL = 12, 4


class TensorBoard:
    """Writes the figures and previews of a run; a disk that refuses is no error."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._file: Path | None = None

    def write(self, event: Event) -> None:
        """Write what an event holds of numbers and pictures, if it holds any.

        From ``Started`` on: it says from which step the training goes on.
        """
        if isinstance(event, Started):
            self._file = self._begin(event.step)
        if self._file is None or not isinstance(event, Step | HeldOut | Preview):
            return
        with suppress(OSError):  # the picture is gone
            summary = Summary(value=self._values(event))
            append_whole(self._file, _framed(event.step, summary=summary))

    def _values(self, event: Step | HeldOut | Preview) -> list[Summary.Value]:
        if isinstance(event, Preview):
            return [_picture(self._run.path / event.path)]
        return [
            Summary.Value(tag=GROUP + name, simple_value=number)
            for name, number in event.figures.items()
        ]

    def _begin(self, step: int) -> Path | None:
        """Begin a file with what is kept of the last one; None if the disk refuses."""
        folder = self._run.tensorboard
        before = sorted(folder.glob(PATTERN))
        name = PATTERN.replace("*", f"{time.time():.6f}.{socket.gethostname()}")
        try:
            # Under a name that TensorBoard does not look at until it is whole.
            with write_beside(folder / "next") as beside, beside.open("wb") as file:
                file.write(_framed(0, file_version=VERSION))
                file.write(_framed(0, session_log=SessionLog(status=SessionLog.START)))
                for record in _kept(before[-1], step) if before and step else ():
                    file.write(record)
            (folder / "next").replace(folder / name)
            # Emptied before it is removed: who has it open goes on to the next one.
            for old in before:
                if old.stat().st_size:
                    os.truncate(old, 0)
                else:
                    old.unlink()
        except OSError as error:
            logger.warning("no file for TensorBoard is written: %s", error)
            return None
        return folder / name


def _picture(path: Path) -> Summary.Value:
    with Image.open(path) as picture:
        width, height = picture.size
    image = Summary.Image(
        width=width,
        height=height,
        colorspace=3,
        encoded_image_string=path.read_bytes(),
    )
    return Summary.Value(tag=GROUP + "preview", image=image)


def _framed(step: int, **what: object) -> bytes:
    """Return a record as it stands in the file, with its length and check sums."""
    data = Record(step=step, wall_time=time.time(), **what).SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + _check(length) + data + _check(data)


def _check(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


def _kept(path: Path, step: int) -> Iterator[bytes]:
    """Yield the records of summaries up to a step, as they stand in the file."""
    with path.open("rb") as file:
        while len(head := file.read(HEAD)) == HEAD and head[8:] == _check(head[:8]):
            (length,) = struct.unpack("<Q", head[:8])
            body = file.read(length + TAIL)
            if len(body) < length + TAIL:  # of a process that was killed
                return
            try:
                record = Record.FromString(body[:length])
            except DecodeError:
                return
            if record.HasField("summary") and record.step <= step:
                yield head + body
