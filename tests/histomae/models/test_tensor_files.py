from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from histomae.errors import CheckpointError
from histomae.models import tensor_files
from histomae.models.tensor_files import Entry, open_tensor_file, write_tensor_file


@pytest.fixture
def tensors():
    return {
        "matrix": torch.rand(3, 5).T,  # not contiguous
        "number": torch.tensor(7),
        "nothing": torch.zeros(0, 4),
        "coarse": torch.rand(2).bfloat16(),
        "true": torch.tensor([True, False]),
    }


def test_tensors_come_back(tmp_path, tensors):
    path = tmp_path / "deep" / "file.safetensors"
    write_tensor_file(path, tensors, metadata={"who": "me"})

    file = open_tensor_file(path)

    assert file.metadata == {"who": "me"}
    assert file.entries["matrix"] == Entry(torch.float32, (5, 3))
    assert file.entries["matrix"].num_bytes == 60
    found = file.read()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_programs_read_it(tmp_path, tensors):
    path = tmp_path / "file.safetensors"
    write_tensor_file(path, tensors, metadata={"who": "me"})

    found = safetensors.torch.load_file(path)

    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"who": "me"}


def test_each_tensor_begins_at_a_multiple_of_its_numbers_size(tmp_path, tensors):
    path = tmp_path / "file.safetensors"
    write_tensor_file(path, tensors, metadata={})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for name, spec in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            begin = 8 + length + spec["data_offsets"][0]
            assert begin % tensors[name].itemsize == 0, name


def test_the_umask_decides_who_may_read(tmp_path, tensors):
    (tmp_path / "by-hand").touch()
    path = tmp_path / "file.safetensors"
    write_tensor_file(path, tensors, metadata={})
    assert path.stat().st_mode == (tmp_path / "by-hand").stat().st_mode


def test_a_file_that_changes_in_between_is_refused(tmp_path, tensors):
    path = tmp_path / "file.safetensors"
    write_tensor_file(path, tensors, metadata={})
    file = open_tensor_file(path)
    write_tensor_file(path, {"other": torch.zeros(2)}, metadata={})

    with pytest.raises(CheckpointError, match="changed while it was read"):
        file.read()
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        file.read()


def test_numbers_that_are_cut_off_in_between_are_refused(tmp_path, tensors):
    path = tmp_path / "file.safetensors"
    write_tensor_file(path, tensors, metadata={})
    file = open_tensor_file(path)
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(CheckpointError, match="is damaged"):
        file.read()


def test_what_we_allow_is_what_safetensors_names():
    for dtype in tensor_files.DTYPES.values():
        assert dtype.itemsize > 0
    assert len(set(tensor_files.DTYPES.values())) == len(tensor_files.DTYPES)


@pytest.mark.parametrize(
    "text", ["[]", "1", "", "{", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1, "a": 2}']
)
def test_json_is_read_strictly(text):
    with pytest.raises(ValueError, match="header"):
        tensor_files.parse_object(text)


READERS = {
    "flag": tensor_files.flag,
    "several": tensor_files.several(tensor_files.whole),
    "mapping": tensor_files.mapping(tensor_files.number),
    "text": tensor_files.text,
}
GOOD = {"flag": True, "several": [1, 2], "mapping": {"a": 1}, "text": ""}


def test_fields_are_read():
    assert tensor_files.read_fields(GOOD, READERS) == {
        "flag": True,
        "several": (1, 2),
        "mapping": {"a": 1.0},
        "text": "",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", 1),
        ("flag", None),
        ("several", "12"),
        ("several", [1, True]),
        ("several", [1.0]),
        ("mapping", []),
        ("mapping", {"a": False}),
        ("mapping", {"a": "1"}),
        ("mapping", {"a": 1e300}),
        ("mapping", {"a": 10**400}),
        ("text", b"x"),
        ("text", None),
    ],
)
def test_fields_of_another_type_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        tensor_files.read_fields({**GOOD, name: value}, READERS)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match="unknown field 'more'"):
        tensor_files.read_fields({**GOOD, "more": 1}, READERS)
    with pytest.raises(ValueError, match="no field 'text'"):
        tensor_files.read_fields(
            {k: v for k, v in GOOD.items() if k != "text"}, READERS
        )


def test_headers_are_bounded(tmp_path):
    text = json.dumps(
        {"__metadata__": {"a": "x" * tensor_files.MAX_HEADER_BYTES}}
    ).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)

    with pytest.raises(CheckpointError, match="is no safetensors file, or cut short"):
        open_tensor_file(path)


@pytest.mark.parametrize("first_bytes", [b"\x80", b"PK"], ids=["pickle", "archive"])
def test_a_sound_header_may_begin_like_something_else(tmp_path, first_bytes):
    # The first bytes are the header's length: one of these lengths is as good as any.
    path = tmp_path / "file.safetensors"
    for padding in range(0, 70_000, 8):
        length = _header_length(padding)
        if length.to_bytes(8, "little").startswith(first_bytes):
            break
    else:
        pytest.fail("no padding gives such a length")
    write_tensor_file(path, {"one": torch.ones(1)}, metadata={"pad": "x" * padding})
    assert path.read_bytes().startswith(first_bytes)

    assert open_tensor_file(path).read()["one"] == 1


def _header_length(padding: int) -> int:
    """Return what safetensors makes of a header with so much metadata."""
    header = {
        "__metadata__": {"pad": "x" * padding},
        "one": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    length = len(json.dumps(header, separators=(",", ":")))
    return -(-length // 8) * 8
