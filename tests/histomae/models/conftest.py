"""A small model, its checkpoint, and files that strangers might send."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from histomae.models.checkpoint import (
    CheckpointHeader,
    checkpoint_tensors,
    save_checkpoint,
)
from histomae.models.mae import DecoderSpec, MaskedAutoencoder
from histomae.models.vit import EncoderSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEC = EncoderSpec(tile_px=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
DECODER = DecoderSpec(dim=16, depth=1, heads=2)


@pytest.fixture
def spec():
    return SPEC


@pytest.fixture
def model():
    return MaskedAutoencoder(
        SPEC,
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
        generator=torch.Generator().manual_seed(0),
    ).eval()


@pytest.fixture
def header():
    return CheckpointHeader(
        architecture="vit_test_patch8_32",
        encoder=SPEC,
        decoder=DECODER,
        method="mae",
        mask_ratio=0.75,
        norm_pix=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        tile_px=32,
        mpp=0.69,
        mpp_given=False,
        step=1200,
        config_hash="0123abcd",
    )


@pytest.fixture
def checkpoint_path(tmp_path, model, header):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, header, checkpoint_tensors(model))
    return path


def split(data: bytes) -> tuple[dict, bytes]:
    """Return the JSON header and the numbers of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(fields: dict | bytes, numbers: bytes = b"") -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + numbers


class Gadget:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


@dataclass(frozen=True)
class Hostile:
    """A way to make a file; it gets the bytes of a good checkpoint and a canary."""

    id: str
    make: Callable[[Path, bytes, Path], None]


HOSTILE: list[Hostile] = []


def hostile(make):
    HOSTILE.append(Hostile(make.__name__, make))
    return make


def from_bytes(name):
    """Register a function from (good bytes, canary) to the bytes of a hostile file."""

    def register(make):
        HOSTILE.append(
            Hostile(
                name, lambda path, good, canary: path.write_bytes(make(good, canary))
            )
        )
        return make

    return register


def header_with(name, **changes):
    """Register a checkpoint whose own JSON header is changed."""

    def make(path, good, canary):
        fields, numbers = split(good)
        own = json.loads(fields["__metadata__"]["histomae"])
        own.update({k: v for k, v in changes.items() if k != "encoder"})
        own["encoder"].update(changes.get("encoder", {}))
        fields["__metadata__"]["histomae"] = json.dumps(own)
        path.write_bytes(joined(fields, numbers))

    HOSTILE.append(Hostile(name, make))


def entry_with(name, **changes):
    """Register a checkpoint whose description of one tensor is changed."""

    def make(path, good, canary):
        fields, numbers = split(good)
        fields["cls_token"].update(changes)
        path.write_bytes(joined(fields, numbers))

    HOSTILE.append(Hostile(name, make))


# Things that run code when unpickled


@from_bytes("pickle")
def _(good, canary):
    return pickle.dumps(Gadget(canary))


@from_bytes("pickle of protocol 0")
def _(good, canary):
    return pickle.dumps(Gadget(canary), protocol=0)


@from_bytes("pickle compressed as joblib does")
def _(good, canary):
    return zlib.compress(pickle.dumps(Gadget(canary)))


@from_bytes("gadget saved by torch")
def _(good, canary):
    stream = io.BytesIO()
    torch.save({"model": {"cls_token": torch.zeros(1)}, "args": Gadget(canary)}, stream)
    return stream.getvalue()


@from_bytes("gadget saved by old torch")
def _(good, canary):
    stream = io.BytesIO()
    torch.save(Gadget(canary), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@from_bytes("whole module saved by torch")
def _(good, canary):
    stream = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), stream)
    return stream.getvalue()


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


@from_bytes("TorchScript")
def _(good, canary):
    gadget = pickle.dumps(Gadget(canary))
    code = b"def forward(self): return 0"
    return zipped(
        {
            "archive/data.pkl": gadget,
            "archive/constants.pkl": gadget,
            "archive/code/__torch__.py": code,
            "archive/version": b"3",
        }
    )


@from_bytes("exported program")
def _(good, canary):
    gadget = pickle.dumps(Gadget(canary))
    return zipped({"archive/archive_format": b"pt2", "archive/data/weights.pt": gadget})


@from_bytes("npz with objects")
def _(good, canary):
    stream = io.BytesIO()
    np.savez(stream, cls_token=np.array([Gadget(canary)], dtype=object))
    return stream.getvalue()


@from_bytes("npy with objects")
def _(good, canary):
    stream = io.BytesIO()
    np.save(stream, np.array([Gadget(canary)], dtype=object))
    return stream.getvalue()


@from_bytes("tar of pickles")
def _(good, canary):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../escaped"):
            data = pickle.dumps(Gadget(canary))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


# Archives that leave their folder, or swell


@from_bytes("zip that climbs out")
def _(good, canary):
    return zipped({"../escaped": b"x", "archive/data.pkl": b"\x80\x02}."})


@from_bytes("zip bomb")
def _(good, canary):
    members = {"archive/data.pkl": bytes(100_000_000), "archive/version": b"3"}
    return zipped(members, zipfile.ZIP_DEFLATED)


@from_bytes("tensor larger than its storage")
def _(good, canary):
    stream = io.BytesIO()
    torch.save({"cls_token": torch.zeros(4)}, stream)
    with zipfile.ZipFile(stream) as archive:
        members = {m: archive.read(m) for m in archive.namelist()}
    name = next(m for m in members if m.endswith("data.pkl"))
    # the size (4,) of the tensor is pickled as K\x04\x85
    assert members[name].count(b"K\x04\x85") == 1
    members[name] = members[name].replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85")
    return zipped(members)


# No tensors at all


@from_bytes("empty")
def _(good, canary):
    return b""


@from_bytes("three bytes")
def _(good, canary):
    return good[:3]


@from_bytes("web page")
def _(good, canary):
    return b"<!DOCTYPE html><title>404</title>" * 100


@from_bytes("HDF5")
def _(good, canary):
    return b"\x89HDF\r\n\x1a\n" + bytes(1000)


@hostile
def folder(path, good, canary):
    path.mkdir()


@hostile
def pipe(path, good, canary):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(path)


@hostile
def endless_link(path, good, canary):
    path.symlink_to("/dev/zero")


@hostile
def circular_link(path, good, canary):
    path.symlink_to(path)


# Headers of safetensors that lie


@from_bytes("header of 2**63 bytes")
def _(good, canary):
    return (2**63).to_bytes(8, "little") + good[8:]


@from_bytes("header longer than the file")
def _(good, canary):
    return len(good).to_bytes(8, "little") + good[8:]


@from_bytes("header of 100 MB")
def _(good, canary):
    return joined(b"{" + b" " * 100_000_000 + b"}")


@from_bytes("header of the largest size, all brackets")
def _(good, canary):
    return joined(b'{"a":[' + b"[]," * 349_000 + b"[]]}")


@from_bytes("header nested 100 000 deep")
def _(good, canary):
    return joined(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


@from_bytes("header that is no text")
def _(good, canary):
    return joined(b"{\xff\xfe}")


@from_bytes("header that is a list")
def _(good, canary):
    return joined(b"[1, 2]")


@from_bytes("header with a number of 5000 digits")
def _(good, canary):
    return joined(b'{"a":' + b"9" * 5000 + b"}")


@from_bytes("100 000 tensors")
def _(good, canary):
    fields, numbers = split(good)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return joined({**fields, **{f"t{i}": empty for i in range(100_000)}}, numbers)


@from_bytes("9 000 tensors")
def _(good, canary):
    fields, numbers = split(good)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return joined({**fields, **{f"t{i}": empty for i in range(9_000)}}, numbers)


@from_bytes("the same tensor twice")
def _(good, canary):
    length = int.from_bytes(good[:8], "little")
    twice = {"dtype": "F32", "shape": [1, 24, 1], "data_offsets": [0, 96]}
    text = b'{"cls_token":' + json.dumps(twice).encode() + b"," + good[9 : 8 + length]
    return joined(text, good[8 + length :])


@from_bytes("metadata that are no text")
def _(good, canary):
    fields, numbers = split(good)
    return joined({**fields, "__metadata__": {"histomae": {}}}, numbers)


@from_bytes("tensor that is a word")
def _(good, canary):
    fields, numbers = split(good)
    return joined({**fields, "cls_token": "zeros"}, numbers)


@from_bytes("two tensors in one place")
def _(good, canary):
    fields, numbers = split(good)
    fields["norm.weight"]["data_offsets"] = fields["norm.bias"]["data_offsets"]
    return joined(fields, numbers)


@from_bytes("numbers nobody owns")
def _(good, canary):
    return good + bytes(64)


entry_with("shape bomb", shape=[2**39, 2**39])
entry_with("shape of a hundred thousand sides", shape=[1] * 100_000)
entry_with("shape below zero", shape=[-1, -1, -24])
entry_with("shape of fractions", shape=[1.0, 1.0, 24.0])
entry_with("shape of truth", shape=[True, True, 24])
entry_with("shape that is huge", shape=[10**4000])
entry_with("shape of another size", shape=[1, 1, 23])
entry_with("shape of the same size", shape=[24, 1, 1])
entry_with("unknown type", dtype="F7")
entry_with("type that is a list", dtype=["F32"])
entry_with("another type", dtype="I32")
entry_with("complex numbers", dtype="C64")
entry_with("offsets beyond the file", data_offsets=[10**12, 10**12 + 96])
entry_with("offsets turned round", data_offsets=[96, 0])
entry_with("one offset", data_offsets=[0])

# Headers of ours that lie

header_with("format of the future", format=2)
header_with("format that is a list", format=[])
header_with("encoder as wide as the world", encoder={"embed_dim": 10**9})
header_with("encoder as deep as the sea", encoder={"depth": 10**6})
header_with(
    "largest encoder", encoder={"embed_dim": 8192, "depth": 128, "num_heads": 128}
)
header_with("encoder with a fraction", encoder={"depth": 2.0})
header_with("encoder with more", encoder={"command": "rm"})
header_with("tile that differs", tile_px=224)
header_with("largest decoder", decoder={"dim": 8192, "depth": 128, "heads": 128})
header_with("no decoder, yet weights", decoder=None)
header_with("unknown field", command="rm")
header_with("mean that is a word", mean="0.5")
header_with("two means", mean=[0.5, 0.5])
header_with("std of zero", std=[0.2, 0.2, 0.0])
header_with("mpp below zero", mpp=-0.5)
header_with("mpp that is NaN", mpp=float("nan"))
header_with("mpp of 400 digits", mpp=10**400)
header_with("flag that is a number", norm_pix=1)
header_with("step back", step=-1)
header_with("versions that are numbers", versions={"torch": 2})


@from_bytes("header that is no JSON")
def _(good, canary):
    fields, numbers = split(good)
    fields["__metadata__"]["histomae"] = "{'architecture': __import__('os')}"
    return joined(fields, numbers)


@from_bytes("NaN among the weights")
def _(good, canary):
    fields, numbers = split(good)
    start = fields["norm.bias"]["data_offsets"][0]
    nan = np.float32("nan").tobytes()
    return joined(fields, numbers[:start] + nan + numbers[start + 4 :])


@from_bytes("swollen optimizer")
def _(good, canary):
    fields, numbers = split(good)
    end = len(numbers) + 4_000_000
    state = {"dtype": "U8", "shape": [4_000_000], "data_offsets": [len(numbers), end]}
    return joined({**fields, "optimizer.rng": state}, numbers + bytes(4_000_000))


def unnamed(remove):
    """Register a checkpoint whose last tensors in the file are left out."""

    def make(path, good, canary):
        fields, numbers = split(good)
        last = sorted(
            (k for k in fields if k != "__metadata__"),
            key=lambda k: fields[k]["data_offsets"],
        )[-remove:]
        start = min(fields[k]["data_offsets"][0] for k in last)
        kept = {k: v for k, v in fields.items() if k not in last}
        path.write_bytes(joined(kept, numbers[:start]))

    HOSTILE.append(Hostile(f"{remove} tensors missing", make))


unnamed(1)
unnamed(10)


@pytest.fixture(params=HOSTILE, ids=lambda case: case.id)
def hostile_file(request, tmp_path, checkpoint_path):
    """Yield the path of a hostile file; afterwards nothing may have happened."""
    good = checkpoint_path.read_bytes()
    canary = tmp_path / "canary"
    folder = tmp_path / "inbox"
    folder.mkdir()
    path = folder / "stranger.safetensors"
    request.param.make(path, good, canary)
    canary.unlink(missing_ok=True)
    before = sorted(tmp_path.rglob("*"))

    yield path

    assert not canary.exists(), "the file ran code"
    assert sorted(tmp_path.rglob("*")) == before
