"""Sets of pictures that are files, as a training lists them and finds them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histomae.errors import RunError
from histomae.files import write_beside

if TYPE_CHECKING:
    from pathlib import Path

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class PictureSets:
    """Sets of pictures of one place at ``views`` magnifications, n of them.

    ``paths`` of each set, by magnification from the coarsest; None where there is none.
    Of plain pictures there is one in each set. ``cases`` are the patients, or whatever
    else must not be torn apart. ``held_out`` bool (n,): kept out of training, whole
    cases.
    """

    paths: tuple[tuple[Path | None, ...], ...]
    cases: tuple[str, ...]
    held_out: Bools
    views: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def present(self) -> Bools:
        """Which magnifications there are of each set, bool (n, views)."""
        there = [[path is not None for path in one] for one in self.paths]
        return np.array(there, bool).reshape(-1, self.views)

    @property
    def patient(self) -> Indices:
        """A number for each set's patient, from 0, int64 (n,)."""
        return np.unique(np.array(self.cases, str), return_inverse=True)[1]

    def of(self, kept: Bools) -> PictureSets:
        """Return some of the sets: bool (n,)."""
        rows = np.flatnonzero(kept).tolist()
        return PictureSets(
            tuple(self.paths[row] for row in rows),
            tuple(self.cases[row] for row in rows),
            self.held_out[kept],
            self.views,
        )

    def save(self, path: Path, root: Path) -> None:
        """Write the sets as Parquet, their paths from ``root``."""
        columns: dict[str, Any] = {"case": self.cases, "held_out": self.held_out}
        for view in range(self.views):
            columns[f"path_{view}"] = [_inside(one[view], root) for one in self.paths]
        table = pa.table(columns)
        with write_beside(path) as beside:
            pq.write_table(table, beside)

    @classmethod
    def load(cls, path: Path, root: Path) -> PictureSets:
        """Read what :meth:`save` wrote; the pictures may have moved to ``root``.

        Raises
        ------
        RunError
            If the file is damaged, or a picture is missing.
        """
        try:
            table = pq.read_table(path, memory_map=False).to_pydict()
            views = sum(name.startswith("path_") for name in table)
            columns = [table[f"path_{view}"] for view in range(views)]
            paths = tuple(
                tuple(None if name is None else root / name for name in one)
                for one in zip(*columns, strict=True)
            )
            held_out = np.asarray(table["held_out"], bool)
            sets = cls(paths, tuple(table["case"]), held_out, views)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path.name} is no list of pictures ({error}). Start a new run."
            ) from error
        for one in (p for paths in sets.paths for p in paths if p is not None):
            if not one.is_file():
                raise RunError(
                    f"The run was trained on {one}, which is missing. Bring it back, "
                    "or resume with slides that names the folder's place."
                )
        return sets


def _inside(path: Path | None, root: Path) -> str | None:
    return None if path is None else path.relative_to(root).as_posix()
