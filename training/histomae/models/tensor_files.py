"""Files of tensors, read with suspicion: safetensors with our JSON in its metadata.

A file may come from anyone. Its header is checked against the file's size before any
number is read; nothing is unpickled, and nothing is memory-mapped (a file that is cut
short while mapped kills the process).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from histomae.errors import CheckpointError
from histomae.files import write_beside

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from torch import Tensor

#: Real headers have some 100 bytes per tensor; much JSON takes long to parse.
MAX_HEADER_BYTES = 2**20
#: A ViT-S with decoder and optimizer has some 900.
MAX_ENTRIES = 10_000
MAX_DIMENSIONS = 8
MAX_SIDE = 2**40
LARGEST_NUMBER = 1e30

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
GET_AGAIN = "Copy or download the file again."


@dataclass(frozen=True)
class Entry:
    """What one tensor of a file is, without its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """The header of a safetensors file, found to agree with the file's size."""

    path: Path
    metadata: dict[str, str]
    entries: dict[str, Entry]
    head: bytes
    """The bytes that were judged: length and header."""

    def read(self) -> dict[str, Tensor]:
        """Read all tensors into memory.

        Raises
        ------
        CheckpointError
            If the file cannot be read, or is no longer the one that was judged.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise unreadable(self.path, error) from error
        if not data.startswith(self.head):
            raise refused(self.path, "changed while it was read", "Load it again.")
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError) as error:
            raise refused(self.path, f"is damaged ({error})", GET_AGAIN) from error
        if entries_of(tensors) != self.entries:
            raise refused(self.path, "holds other tensors than it says", GET_AGAIN)
        return tensors


def refused(path: Path, reason: str, cure: str) -> CheckpointError:
    """Return the error for a file: its name, what is wrong with it, what to do."""
    return CheckpointError(f"{path.name} {reason}. {cure}")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that the system does not give us."""
    reason = error.strerror or type(error).__name__
    return refused(
        path, f"cannot be read ({reason})", f"Check that {path} exists and is a file."
    )


def entries_of(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Return dtype and shape of each tensor."""
    return {name: Entry(t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def write_tensor_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    metadata: dict[str, str],
) -> None:
    """Write tensors beside ``path`` and rename: readers see the old file or the new.

    One after the other, so that no second copy of them all is made where memory may be
    short.
    """
    # Not safetensors' save_file: it has a temporary file of its own, which outlives a
    # kill, and is readable by nobody else. The widest numbers come first: then each
    # tensor begins at a multiple of its numbers' size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with write_beside(Path(path)) as beside, beside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            plain = tensor.detach().cpu().contiguous().flatten()
            file.write(plain.view(torch.uint8).numpy().data)


def open_tensor_file(path: str | os.PathLike[str]) -> TensorFile:
    """Read and judge the header of a safetensors file, none of its tensors.

    Raises
    ------
    CheckpointError
        If it is no such file, is damaged, or declares more than it can hold.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a folder, or a pipe that would block
            raise FileNotFoundError(2, "no such file")
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            _check_start(path, start, size)
            header = stream.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        fields = parse_object(header)
        if len(fields) > MAX_ENTRIES:
            raise ValueError(f"it lists {len(fields)} tensors")
        metadata = _metadata(fields.pop("__metadata__", {}))
        data_bytes = size - 8 - length
        entries = {
            name: _entry(name, spec, data_bytes) for name, spec in fields.items()
        }
        _check_layout([spec["data_offsets"] for spec in fields.values()], data_bytes)
    except ValueError as error:
        raise refused(
            path, f"is damaged, or not made to be read ({error})", GET_AGAIN
        ) from error
    return TensorFile(path, metadata, entries, start + header)


def is_tensor_file(path: Path) -> bool:
    """Tell from its first bytes whether a file may be safetensors, not a pickle."""
    try:
        with path.open("rb") as stream:
            return stream.read(9)[8:] == b"{"
    except OSError as error:
        raise unreadable(path, error) from error


def _check_start(path: Path, start: bytes, size: int) -> None:
    """Refuse what is plainly something else, or cut short in the header."""
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length <= min(MAX_HEADER_BYTES, size - 8):
        return
    # Only now: the length of a sound header may begin with the same bytes.
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise refused(
            path,
            "is an archive or a pickled PyTorch file, which can run code and is not "
            "opened here",
            "Choose a .safetensors file; to start a training from the weights in this "
            "one, name it under init_from.",
        )
    raise refused(path, "is no safetensors file, or cut short", GET_AGAIN)


def _check_layout(offsets: list[list[int]], data_bytes: int) -> None:
    """Refuse tensors that overlap, leave gaps, or do not fill the file."""
    end = 0
    for start, stop in sorted(offsets):
        if start != end:
            raise ValueError(f"its tensors overlap or leave a gap at byte {end}")
        end = stop
    if end != data_bytes:
        raise ValueError(f"it declares {end} bytes of tensors and has {data_bytes}")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(v, str) for v in value.values()
    ):
        raise ValueError("its metadata are not text")
    return value


def _entry(name: str, spec: Any, data_bytes: int) -> Entry:
    """Return what a header says of one tensor, if it can be so."""
    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]!r} is not described as a tensor")
    dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name[:80]!r} has the unknown type {dtype!s:.40}")
    if not _whole_numbers(shape, MAX_DIMENSIONS, MAX_SIDE):
        raise ValueError(f"{name[:80]!r} has no possible shape")
    if not _whole_numbers(offsets, 2, data_bytes) or len(offsets) != 2:
        raise ValueError(f"{name[:80]!r} lies outside the file")
    entry = Entry(DTYPES[dtype], tuple(shape))
    if entry.num_bytes != offsets[1] - offsets[0]:
        raise ValueError(f"{name[:80]!r} does not have the size of its shape")
    return entry


def _whole_numbers(value: Any, most: int, largest: int) -> bool:
    """Tell whether a value is a list of at most ``most`` integers 0 to ``largest``."""
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(number) is int and 0 <= number <= largest for number in value)
    )


# JSON, strictly --------------------------------------------------------------


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object; ValueError for anything else, NaN and infinity included."""
    try:
        value = json.loads(
            text, parse_constant=_no_constant, object_pairs_hook=_no_name_twice
        )
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"its header is no JSON: {error!s:.80}") from error
    if not isinstance(value, dict):
        raise ValueError("its header is no JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("it names something twice")
    return fields


def read_fields(
    values: Mapping[str, Any], readers: Mapping[str, Callable[[Any], Any]]
) -> dict[str, Any]:
    """Read exactly the fields of ``readers``, each through its reader.

    A reader returns the value it accepts, or raises ValueError. Unknown fields and
    missing ones are refused by name.
    """
    unknown, missing = set(values) - set(readers), set(readers) - set(values)
    if unknown:
        raise ValueError(f"unknown field {min(unknown)[:80]!r}")
    if missing:
        raise ValueError(f"no field {min(missing)!r}")
    read = {}
    for name, reader in readers.items():
        try:
            read[name] = reader(values[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return read


def text(value: Any) -> str:
    """Accept a string."""
    if not isinstance(value, str):
        raise ValueError(f"{value!s:.40} is no text")
    return value


def flag(value: Any) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!s:.40} is neither true nor false")
    return value


def whole(value: Any) -> int:
    """Accept an integer."""
    if type(value) is not int:
        raise ValueError(f"{value!s:.40} is no whole number")
    return value


def number(value: Any) -> float:
    """Accept a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!s:.40} is no number")
    if not abs(value) <= LARGEST_NUMBER:  # so written, it refuses NaN too
        raise ValueError(f"{value!s:.40} is out of range")
    return float(value)


def optional(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a reader that accepts null too."""
    return lambda value: None if value is None else reader(value)


def several(reader: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Make a reader of a list, each item through ``reader``."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{value!s:.40} is no list")
        return tuple(reader(item) for item in value)

    return read


def mapping(reader: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """Make a reader of an object, each value through ``reader``."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{value!s:.40} is no JSON object")
        return {name: reader(item) for name, item in value.items()}

    return read
