"""Evaluations as folders: each finished trial a file, and what stands beside them.

``FOLDER/trials/*.npz`` hold one trial each, ``FOLDER/evaluation.json`` the rest, and
``FOLDER/embedding.npz`` features for the map. No file says when it was written, so
that two runs with the same seeds leave the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.data.classes import ClassSet
from histomae.data.labelled import LabelledPicture, LabelledSet
from histomae.data.pictures import read_picture
from histomae.errors import ConfigError, DataSetError, RunError
from histomae.evaluate.trials import Evaluation, Trial
from histomae.files import write_beside

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, Any]

VERSION = 1
EVALUATION, TRIALS, EMBEDDING = "evaluation.json", "trials", "embedding.npz"
#: Fields of a trial that are arrays; the others are JSON.
ARRAYS = (
    *("tested", "probabilities", "logits", "patch_picture", "patch_probabilities"),
)
#: What NumPy has been seen to raise on damaged files.
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


def short_hash(facts: Any) -> str:
    """Return a hash of facts that are JSON, 16 hexadecimal digits."""
    told = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def trial_path(
    folder: Path,
    *,
    candidate: str,
    identity: str,
    setting: Mapping[str, Any],
    fold: int,
    plan: str,
) -> Path:
    """Return the file of a trial; its name says what it is of.

    Parameters
    ----------
    identity
        Hash of the candidate.
    plan
        Hash of all that trials of an evaluation have in common.
    """
    key = short_hash([plan, identity, dict(setting), fold])
    words = [candidate, *(f"{name}-{value}" for name, value in setting.items())]
    told = re.sub(r"[^\w.-]+", "-", "_".join(words)).strip("-")[:80]
    return folder / TRIALS / f"{told}_fold-{fold}_{key}.npz"


def save_trial(path: Path, trial: Trial) -> None:
    """Write a trial beside ``path`` and rename it."""
    arrays, plain = {}, {}
    for field in fields(Trial):
        value = getattr(trial, field.name)
        if field.name not in ARRAYS:
            plain[field.name] = dict(value) if hasattr(value, "items") else value
        elif value is not None:
            arrays[field.name] = value
    text = json.dumps({"histomae_trial": VERSION, **plain}, sort_keys=True)
    arrays["json"] = np.frombuffer(text.encode(), np.uint8)
    save_arrays(path, arrays)


def load_trial(path: Path) -> Trial:
    """Read a trial.

    Raises
    ------
    RunError
        If the file is none; it names the file.
    """
    try:
        arrays: dict[str, Any] = load_arrays(path)
        plain = json.loads(arrays.pop("json").tobytes())
        if plain.pop("histomae_trial") != VERSION:
            raise ValueError("another version of the program wrote it")
        trial = Trial(**plain, **arrays)
        if len(trial.tested) != len(trial.probabilities):
            raise ValueError("its arrays differ in length")
    except DAMAGE as error:
        raise RunError(
            f"{path} holds no trial that can be read ({error!s:.200}). Remove it and "
            "evaluate again: the other trials are kept."
        ) from error
    return trial


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays beside ``path`` and rename them."""
    with write_beside(path) as beside, beside.open("wb") as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, Array]:
    """Read what :func:`save_arrays` wrote; raises one of ``DAMAGE`` where it cannot."""
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def save_evaluation(folder: Path, evaluation: Evaluation, files: list[Path]) -> Path:
    """Write an evaluation whose trials lie in ``files``, in the same order."""
    data = evaluation.data
    told = {
        "histomae_evaluation": VERSION,
        "protocol": evaluation.protocol,
        "facts": evaluation.facts,
        "leaks": None if evaluation.leaks is None else list(evaluation.leaks),
        "looked_for": list(evaluation.looked_for),
        "not_looked_for": list(evaluation.not_looked_for),
        "notes": list(evaluation.notes),
        "published": [dict(row) for row in evaluation.published],
        "trials": [path.relative_to(folder).as_posix() for path in files],
        "data": {
            "name": data.name,
            "root": str(data.root),
            "notes": list(data.notes),
            "classes": {
                "names": data.classes.names,
                "colors": data.classes.colors,
                "full_names": data.classes.full_names,
            },
            "pictures": [_row(picture, data.root) for picture in data.pictures],
        },
    }
    if evaluation.embedding:
        names = list(evaluation.embedding)
        told["embedding"] = names
        arrays = {str(i): evaluation.embedding[one] for i, one in enumerate(names)}
        save_arrays(folder / EMBEDDING, arrays)
    path = folder / EVALUATION
    with write_beside(path) as beside:
        text = json.dumps(told, indent=1, ensure_ascii=False)
        beside.write_text(text + "\n", "utf-8")
    return path


def _row(picture: LabelledPicture, root: Path) -> dict[str, Any]:
    """Return a picture as JSON, its path from the root where it lies below."""
    path = picture.path
    inside = path.relative_to(root) if path.is_relative_to(root) else path
    values = {field.name: getattr(picture, field.name) for field in fields(picture)}
    return {**values, "path": inside.as_posix()}


def load_evaluation(folder: Path) -> Evaluation:
    """Read a finished evaluation.

    Its data set reads pictures from where they lay; moved or removed ones raise
    DataSetError only when they are looked at.

    Raises
    ------
    RunError
        If the folder holds none, or a file is damaged; it names the file.
    """
    path = folder / EVALUATION
    try:
        told = json.loads(path.read_text("utf-8"))
        if told["histomae_evaluation"] != VERSION:
            raise ValueError("another version of the program wrote it")
        data = _data(told["data"])
        files = [folder / name for name in told["trials"]]
        names = told.get("embedding", [])
        embedding = _embedding(folder / EMBEDDING, names) if names else {}
    except (*DAMAGE, ConfigError) as error:
        raise RunError(
            f"{folder} holds no finished evaluation that can be read "
            f"({error!s:.200}). Name the folder that 'histomae evaluate' wrote, or run "
            "it again: finished trials are kept."
        ) from error
    return Evaluation(
        protocol=told["protocol"],
        data=data,
        trials=tuple(load_trial(file) for file in files),
        facts=told["facts"],
        leaks=None if told["leaks"] is None else tuple(told["leaks"]),
        looked_for=tuple(told["looked_for"]),
        not_looked_for=tuple(told["not_looked_for"]),
        notes=tuple(told["notes"]),
        published=tuple(told["published"]),
        embedding=embedding,
    )


def _data(told: Mapping[str, Any]) -> LabelledSet:
    root, classes = Path(told["root"]), told["classes"]
    pictures = tuple(
        LabelledPicture(**{**row, "path": root / row["path"]})
        for row in told["pictures"]
    )
    return LabelledSet(
        name=told["name"],
        root=root,
        classes=ClassSet(
            tuple(classes["names"]),
            tuple(tuple(color) for color in classes["colors"]),
            tuple(classes["full_names"]),
        ),
        pictures=pictures,
        read=_read,
        notes=tuple(told["notes"]),
    )


def _read(picture: LabelledPicture) -> Array:
    if picture.row is not None:
        raise DataSetError(
            f"{picture.name} lies in a container. Open the data set to look at it."
        )
    return read_picture(picture.path)


def _embedding(path: Path, names: list[str]) -> dict[str, Array]:
    arrays = load_arrays(path)
    return {name: arrays[str(number)] for number, name in enumerate(names)}
