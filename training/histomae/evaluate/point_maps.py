"""Features laid out in a plane, so that who is like whom can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from histomae.errors import DependencyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = np.ndarray[Any, Any]

#: How features are laid out, and what that is called.
METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
#: Points of a map; more hide each other and take long to lay out.
MOST_POINTS = 2000
#: With fewer there is nothing to lay out.
LEAST_POINTS = 4
#: Features of more numbers are brought to so many before t-SNE and UMAP.
COMPONENTS = 50
#: Neighbours that t-SNE tries to keep near.
PERPLEXITY = 30.0


@dataclass(frozen=True, eq=False, kw_only=True)
class PointMap:
    """Points in a plane: ``xy`` float64 (m, 2), of ``rows`` int64 (m,).

    ``axes`` names both directions, where they have a meaning.
    """

    candidate: str
    method: str
    rows: Array
    xy: Array
    axes: tuple[str, str] = ("", "")

    @property
    def words(self) -> str:
        """What the method is called."""
        return METHODS[self.method]


def available() -> tuple[str, ...]:
    """Return the methods that can be used here: UMAP needs a library of its own."""
    return tuple(m for m in METHODS if m != "umap" or find_spec("umap") is not None)


def make_maps(
    features: Mapping[str, Array], methods: Sequence[str]
) -> tuple[PointMap, ...]:
    """Lay out the features of each candidate, float (n, D), by each method.

    Rows that are not finite are left out; of more than ``MOST_POINTS`` a sample is
    shown. A candidate with fewer than ``LEAST_POINTS`` has no map.

    Raises
    ------
    DependencyError
        If a method needs a library that is not installed.
    """
    maps = []
    for candidate, values in features.items():
        rows = sampled(np.flatnonzero(np.isfinite(values).all(1)))
        if len(rows) >= LEAST_POINTS:
            maps += [lay_out(candidate, rows, values[rows], way) for way in methods]
    return tuple(maps)


def sampled(rows: Array, *, most: int = MOST_POINTS) -> Array:
    """Return at most so many rows, in order: always the same ones."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def lay_out(candidate: str, rows: Array, features: Array, method: str) -> PointMap:
    """Lay out features (m, D), m at least ``LEAST_POINTS``; always the same way.

    Raises
    ------
    DependencyError
        If the method needs a library that is not installed.
    """
    from threadpoolctl import threadpool_limits

    # Sums in another order would be another map.
    with threadpool_limits(1):
        wide = np.asarray(features, np.float64)
        if method == "pca":
            xy, axes = _pca(wide)
        else:
            narrow = _components(wide, COMPONENTS)[0]
            xy, axes = (_tsne if method == "tsne" else _umap)(narrow), ("", "")
    return PointMap(
        candidate=candidate, method=method, rows=rows, xy=np.round(xy, 4), axes=axes
    )


def _components(features: Array, most: int) -> tuple[Array, Array]:
    """Return features (m, at most ``most``) along their main directions, and shares."""
    centred = features - features.mean(0)
    _, sizes, turned = np.linalg.svd(centred, full_matrices=False)
    # A direction may as well be the opposite one: its largest part is positive.
    largest = np.take_along_axis(turned, np.abs(turned).argmax(1)[:, None], 1)
    turned = turned * np.where(largest < 0, -1, 1)
    power = sizes**2
    shares = np.divide(power, power.sum(), where=power > 0, out=np.zeros(len(power)))
    return centred @ turned[:most].T, shares[:most]


def _pca(features: Array) -> tuple[Array, tuple[str, str]]:
    turned, shares = _components(features, 2)
    if turned.shape[1] < 2:
        turned, shares = np.pad(turned, ((0, 0), (0, 1))), np.pad(shares, (0, 1))
    first, second = (f"component {i + 1} ({shares[i]:.0%})" for i in (0, 1))
    return turned, (first, second)


def _tsne(features: Array) -> Array:
    from sklearn.manifold import TSNE

    near = min(PERPLEXITY, (len(features) - 1) / 3)
    start = "pca" if features.shape[1] > 1 else "random"
    made = TSNE(perplexity=near, init=start, random_state=0, n_jobs=1)
    return made.fit_transform(features)


def _umap(features: Array) -> Array:
    if find_spec("umap") is None:
        raise DependencyError(
            "UMAP is not installed. Install it with "
            "pip install 'napari-histomae[umap]', or choose PCA or t-SNE."
        )
    from umap import UMAP

    near = min(15, len(features) - 1)
    made = UMAP(n_neighbors=near, random_state=0, n_jobs=1, init="pca")
    return made.fit_transform(features)
