"""Fitting a probe: a linear classifier on frozen embeddings, and how good it is.

Tiles of one region are alike, so wherever the probe is judged, whole regions (or
patients) stand on one side: between training and test, and again within training,
where the strength of the regularisation is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from histomae.data.metrics import (
    balanced_accuracy,
    bootstrap_interval,
    confusion_matrix,
    macro_f1,
)
from histomae.data.splits import grouped_folds
from histomae.errors import NotEnoughDataError
from histomae.events import Event, Heartbeat, Note, Progress
from histomae.models.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from histomae.data.splits import GroupedFolds

Array = np.ndarray[Any, Any]
Color = tuple[int, int, int]

#: Inverse strengths of L2, weakest last; the walk ends after two that are no better.
C_GRID = tuple(10.0**power for power in range(-4, 5))
#: A weaker L2 must lower the loss by this share, or the stronger one is kept.
BETTER_BY = 0.01
#: Taken where too few regions are there to choose one.
DEFAULT_C = 1.0
INNER_FOLDS = 3
MAX_STEPS = 10_000
#: Least probability in a log loss.
LOG_FLOOR = np.log(1e-12)
#: Temperatures only soften: that a few tiles were all found is no proof of certainty.
SOFTEST = 10.0
#: What a score leaves open, by what its groups are.
CAVEATS = {
    "region": "Training and test regions are of the same slides: on other patients it "
    "may do worse.",
    "picture": "Pictures of one patient may stand on both sides: on other patients it "
    "may do worse.",
    "slide": "Slides of one patient may stand on both sides: on other patients it may "
    "do worse.",
}


@dataclass(frozen=True)
class LinearFit:
    """A multinomial logistic regression on standardised features.

    ``mean``, ``std`` (D,); ``weight`` (K, D); ``bias`` (K,), minus infinity for a class
    that was not there to learn from. ``chosen`` tells whether ``c`` was chosen by
    grouped validation or is the default.
    """

    mean: Array
    std: Array
    weight: Array
    bias: Array
    c: float
    chosen: bool

    def logits(self, features: Array) -> Array:
        """Return the logits (M, K) of features (M, D)."""
        standard = (np.asarray(features, float) - self.mean) / self.std
        return standard @ self.weight.T + self.bias


def fit_probe(
    embeddings: Array,
    labels: Array,
    groups: Array,
    class_names: Sequence[str],
    *,
    class_colors: Sequence[Color],
    encoder_id: str,
    tile_px: int,
    mpp: float,
    pooling: str,
    seed: int = 0,
    folds: int = 5,
    grouped_by: str = "region",
) -> Generator[Event, None, Probe]:
    """Fit a probe on all tiles, and score it on tiles of groups it did not see.

    Parameters
    ----------
    embeddings
        float32 (M, D); rows that are not finite are left out.
    labels
        int (M,), index of the class.
    groups
        int (M,): tiles of one group never stand on both sides of a fold.
    folds
        At most; fewer where a class has fewer groups.
    grouped_by
        What a group is, for the report: region, slide, patient or picture.

    Returns
    -------
    Probe
        Its ``scores`` say how it was measured. Classes with one group cannot be scored
        and are listed as such.

    Raises
    ------
    NotEnoughDataError
        If there are fewer than two classes, or a class has no tile.
    """
    names = tuple(class_names)
    read = np.isfinite(embeddings).all(1)
    if not read.all():
        yield Note(f"{(~read).sum()} tiles could not be read and are left out.")
    x, y = np.asarray(embeddings, float)[read], np.asarray(labels)[read]
    group = np.unique(np.asarray(groups)[read], return_inverse=True)[1]
    _check_enough(y, names, grouped_by)
    split = grouped_folds(y, group, k=folds, seed=seed)
    out_of_fold = yield from _out_of_fold(x, y, group, len(names), split, seed=seed)
    final = yield from fit_linear(x, y, groups=group, num_classes=len(names), seed=seed)
    yield Progress(
        "training the classifier", len(split.folds) + 1, len(split.folds) + 1
    )
    temperature = fit_temperature(out_of_fold, y)
    scores = {
        **_measured(out_of_fold, y, group, names, split, seed=seed),
        **_counted(y, group, names),
        "grouped_by": grouped_by,
        "seed": seed,
        "c": final.c,
        "c_chosen_by": f"{grouped_by}-wise validation" if final.chosen else "default",
        "class_weight": "balanced",
        "caveat": CAVEATS.get(grouped_by, ""),
        "calibrated": bool(split.folds),
    }
    return Probe(
        mean=final.mean,
        std=final.std,
        weight=final.weight,
        bias=final.bias,
        class_names=names,
        class_colors=tuple(class_colors),
        encoder_id=encoder_id,
        tile_px=tile_px,
        mpp=mpp,
        pooling=pooling,
        temperature=temperature,
        scores={**scores, "summary": summary(scores)},
    )


def fit_linear(
    features: Array, labels: Array, *, groups: Array, num_classes: int, seed: int = 0
) -> Generator[Event, None, LinearFit]:
    """Fit a multinomial logistic regression, L2 chosen by grouped validation.

    Classes count alike, however many tiles each has: how large someone draws a region
    says nothing about how common its class is.

    Parameters
    ----------
    features
        float (M, D).
    labels, groups
        int (M,).
    """
    inner = grouped_folds(labels, groups, k=INNER_FOLDS, seed=seed).folds
    c = DEFAULT_C
    if inner:
        c = yield from _choose_c(features, labels, inner, num_classes)
    model = _solver()
    return _fit(model, features, labels, num_classes, c=c, chosen=bool(inner))


def fit_validated(
    features: Array, labels: Array, *, train: Array, val: Array, num_classes: int
) -> Generator[Event, None, LinearFit]:
    """Fit as :func:`fit_linear` to some rows, L2 chosen on others.

    Parameters
    ----------
    features
        float (M, D).
    labels
        int (M,).
    train, val
        int, row indices; without a row to validate on, L2 is the default.
    """
    c = DEFAULT_C
    if len(val):
        c = yield from _choose_c(features, labels, ((train, val),), num_classes)
    x, y = features[train], labels[train]
    return _fit(_solver(), x, y, num_classes, c=c, chosen=bool(len(val)))


def _choose_c(
    features: Array,
    labels: Array,
    folds: tuple[tuple[Array, Array], ...],
    num_classes: int,
) -> Generator[Event, None, float]:
    """Return the C of the least log loss over folds, walking from strong to weak."""
    models = [_solver(warm_start=True) for _ in folds]
    best, least, tried_since = C_GRID[0], np.inf, 0
    for c in C_GRID:
        logits = np.full((len(labels), num_classes), np.nan)
        for model, (train, test) in zip(models, folds, strict=True):
            fit = _fit(model, features[train], labels[train], num_classes, c=c)
            logits[test] = fit.logits(features[test])
            yield Heartbeat()
        loss = log_loss(logits, labels)
        tried_since += 1
        if loss < least * (1 - BETTER_BY):
            best, least, tried_since = c, loss, 0
        if tried_since == 2:
            break
    return best


def _solver(*, warm_start: bool = False) -> Any:
    return LogisticRegression(
        class_weight="balanced", max_iter=MAX_STEPS, warm_start=warm_start
    )


def _fit(
    model: Any,
    features: Array,
    labels: Array,
    num_classes: int,
    *,
    c: float,
    chosen: bool = False,
) -> LinearFit:
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)
    weight = np.zeros((num_classes, features.shape[1]))
    bias = np.full(num_classes, -np.inf)
    there = np.unique(labels)
    if len(there) == 1:
        bias[there] = 0.0
        return LinearFit(mean, std, weight, bias, c, chosen)
    model.set_params(C=c).fit((features - mean) / std, labels)
    weight[there], bias[there] = model.coef_, model.intercept_
    if len(there) == 2:  # one row that parts the two classes: half of it for each
        sides = np.array([-0.5, 0.5])
        weight[there] = sides[:, None] * model.coef_
        bias[there] = sides * model.intercept_
    return LinearFit(mean, std, weight, bias, c, chosen)


def log_loss(logits: Array, labels: Array, *, temperature: float = 1.0) -> float:
    """Return the mean log loss, every class counting alike.

    Parameters
    ----------
    logits
        (M, K); rows of NaN were not predicted and do not count.
    labels
        int (M,).
    """
    known = ~np.isnan(logits).any(1)
    log_p = log_softmax(logits[known] / temperature, axis=1)
    truth = labels[known]
    losses = -np.maximum(log_p[np.arange(len(truth)), truth], LOG_FLOOR)
    counts = np.bincount(truth, minlength=logits.shape[1])
    return float(np.average(losses, weights=1.0 / counts[truth]))


def fit_temperature(logits: Array, labels: Array) -> float:
    """Return the temperature, 1 or more, at which out-of-fold logits are calibrated.

    1 where nothing was predicted out of fold.
    """
    if np.isnan(logits).any(1).all():
        return 1.0
    found = minimize_scalar(
        lambda log_t: log_loss(logits, labels, temperature=float(np.exp(log_t))),
        bounds=(0.0, np.log(SOFTEST)),
        method="bounded",
    )
    return round(float(np.exp(found.x)), 3)


def _out_of_fold(
    x: Array,
    y: Array,
    group: Array,
    num_classes: int,
    split: GroupedFolds,
    *,
    seed: int,
) -> Generator[Event, None, Array]:
    """Return logits (M, K) by fits that saw no tile of the same group; else NaN."""
    logits = np.full((len(y), num_classes), np.nan)
    total = len(split.folds) + 1
    for done, (train, test) in enumerate(split.folds):
        yield Progress("scoring the classifier", done, total)
        fit = yield from fit_linear(
            x[train], y[train], groups=group[train], num_classes=num_classes, seed=seed
        )
        logits[test] = fit.logits(x[test])
    yield Progress("training the classifier", total - 1, total)
    return logits


def _check_enough(labels: Array, names: tuple[str, ...], grouped_by: str) -> None:
    if len(names) < 2:
        raise NotEnoughDataError(
            f"{len(names)} class is not enough to tell classes apart. Add a second "
            f"class and {_get(grouped_by)} a {grouped_by} of it."
        )
    counts = np.bincount(labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise NotEnoughDataError(
            f"No tile of {_listed(empty)}. {_get(grouped_by).capitalize()} a "
            f"{grouped_by} of each on tissue, or remove the class."
        )


def _measured(
    logits: Array,
    y: Array,
    group: Array,
    names: tuple[str, ...],
    split: GroupedFolds,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the scores of out-of-fold predictions, plain JSON."""
    unscored = [names[i] for i in split.unscored]
    if not split.folds:
        nothing = ("balanced_accuracy", "interval", "macro_f1", "confusion")
        return {"folds": 0, "unscored": unscored, **dict.fromkeys(nothing)}
    tested = ~np.isnan(logits).any(1)
    truth, predicted = y[tested], logits[tested].argmax(1)
    confusion = confusion_matrix(truth, predicted, num_classes=len(names))
    low, high = bootstrap_interval(
        truth, predicted, groups=group[tested], num_classes=len(names), seed=seed
    )
    return {
        "folds": len(split.folds),
        "unscored": unscored,
        "balanced_accuracy": float(balanced_accuracy(confusion)),
        "interval": [low, high],
        "interval_level": 0.95,
        "macro_f1": float(macro_f1(confusion)),
        "confusion": confusion.tolist(),
    }


def _counted(y: Array, group: Array, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "class_names": list(names),
        "tiles": {name: int((y == i).sum()) for i, name in enumerate(names)},
        "regions": {
            name: len(np.unique(group[y == i])) for i, name in enumerate(names)
        },
    }


def summary(scores: dict[str, Any]) -> str:
    """Return the scores of a probe as a sentence or two for people."""
    grouped_by, unscored = scores["grouped_by"], scores["unscored"]
    more = (
        f"{_listed(unscored)} cannot be scored: one {grouped_by} only. "
        f"{_get(grouped_by).capitalize()} a second."
        if unscored
        else ""
    )
    if scores["balanced_accuracy"] is None:
        return f"Not scored. {more}".strip()
    low, high = scores["interval"]
    told = (
        f"Balanced accuracy {scores['balanced_accuracy']:.2f} ({low:.2f}–{high:.2f}), "
        f"grouped by {grouped_by}, {scores['folds']} folds."
    )
    return f"{told} {more}".strip()


def _get(grouped_by: str) -> str:
    """Return how one comes by another group."""
    return "draw" if grouped_by == "region" else "add"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
