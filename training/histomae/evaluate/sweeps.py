"""Sweeps: an encoder pretrained for each value of a setting, all else the same.

Each is a run folder like any other, so that what is finished is kept, and what was
broken off goes on from its checkpoint.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histomae.errors import ConfigError, HistomaeError, RunError
from histomae.evaluate.clock import Clock
from histomae.events import Event, Note, Progress
from histomae.learn.deciding import settled
from histomae.learn.pretrain import run_in
from histomae.learn.runs import RunFolder, absolute_paths, stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from histomae.config import PretrainConfig

#: The folder of the runs, in that of the evaluation.
PRETRAINED = "pretrained"


def read_values(told: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Read settings and their values: ``mask_ratio=0.5,0.75``, or a name alone.

    Values are written as in a recipe; texts need no quotes.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for one in told:
        name, equals, values = one.partition("=")
        found[name.strip()] = tuple(map(_value, values.split(",") if equals else ()))
    return found


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def varied(values: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Return which settings are varied: those of one value are the same for all."""
    return tuple(name for name, each in values.items() if len(each) != 1)


def configs(
    base: PretrainConfig, values: Mapping[str, Sequence[Any]]
) -> dict[str, PretrainConfig]:
    """Return the settings of each pretraining, by the name of its folder.

    Raises
    ------
    ConfigError
        If a name is no setting, has no value, or one that is wrong.
    """
    base.check_names(values)
    for name, each in values.items():
        if not each:
            raise ConfigError(
                name, f"no value is given. Say {name}=VALUE,VALUE, one for each run."
            )
    apart = varied(values)
    found = {}
    for chosen in product(*values.values()):
        setting = dict(zip(values, chosen, strict=True))
        words = "_".join(f"{name}-{setting[name]}" for name in apart)
        told = re.sub(r"[^\w.-]+", "-", words) or "encoder"
        found[told] = base.changed(setting)
    return found


def pretrain_each(
    base: PretrainConfig, values: Mapping[str, Sequence[Any]], out: Path
) -> Generator[Event, None, tuple[Path, ...]]:
    """Pretrain an encoder for each value, or each two of two settings.

    All of them see the same crops with the same seeds, unless those are varied, in the
    precision that was chosen for the first.

    Parameters
    ----------
    base
        All other settings, and what to pretrain on.
    values
        Of each setting; see :func:`read_values`.
    out
        The folder of the evaluation; each run is a folder in ``pretrained/`` there. One
        that is done is kept, one that was begun goes on.

    Returns
    -------
    The run folders, in the order of the values.

    Raises
    ------
    ConfigError
        If a value is wrong, or a run that is there has other settings.
    RunError
        If a run is stopped from elsewhere, or somebody else is at work on it.
    KeyboardInterrupt
        After Ctrl-C, when what was learned is saved.
    HistomaeError
        As :func:`histomae.learn.pretrain.pretrain`.
    """
    asked = configs(base, values)
    runs = {name: RunFolder(out / PRETRAINED / name) for name in asked}
    for name, run in runs.items():
        if run.config_file.exists():
            _check_same(run, asked[name])
    todo = {name: run for name, run in runs.items() if run.state != "done"}
    if kept := len(runs) - len(todo):
        yield Note(f"{kept} of {len(runs)} pretrainings were done before and are kept.")
    clock = Clock(len(todo))
    for number, name in enumerate(runs):
        yield Progress("pretraining", number, len(runs), seconds_left=clock.seconds())
        if name in todo:
            what = f"pretraining {number + 1} of {len(runs)}, {name}"
            config = _like_the_first(asked[name], runs)
            yield from clock.timed(what, _pretrained(runs[name], config))
    yield Progress("pretraining", len(runs), len(runs))
    return tuple(run.path for run in runs.values())


def _check_same(run: RunFolder, config: PretrainConfig) -> None:
    """Refuse a run that was begun with other settings, or on other slides."""
    config, begun = absolute_paths(config), run.config()
    settled(config, begun)
    names = [[Path(slide).name for slide in each.slides] for each in (config, begun)]
    if names[0] != names[1]:
        raise ConfigError(
            "slides",
            f"{run.path} was pretrained on {', '.join(names[1])}, and "
            f"{', '.join(names[0])} is asked for. Choose another folder.",
        )


def _like_the_first(
    config: PretrainConfig, runs: Mapping[str, RunFolder]
) -> PretrainConfig:
    """Return the settings in the precision that was timed for the first run."""
    first = next(iter(runs.values()))
    if config.precision != "auto" or not first.config_file.exists():
        return config
    return replace(config, precision=first.config().precision)


def _pretrained(run: RunFolder, config: PretrainConfig) -> Generator[Event, None, None]:
    """Pretrain to the end; Ctrl-C keeps what was learned."""
    if run.last.exists():
        yield Note(f"{run.path.name} goes on from its checkpoint.")
    if not run.config_file.exists():
        run.create(config)
    try:
        with stop_on_signals(run) as signals:
            yield from run_in(run)
    except HistomaeError:
        run.forget_unstarted()
        raise
    if signals:
        raise KeyboardInterrupt
    if run.state != "done":
        raise RunError(
            f"{run.path} was {run.state} from elsewhere. The same command goes on."
        )
