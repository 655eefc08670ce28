"""The errors of histomae: each says what happened and ends with what to do.

Every class is also the built-in one that fits, so that callers who know nothing of
this package catch the right thing. None is a ``RuntimeError``: napari's generator
workers swallow those.
"""

from __future__ import annotations


class HistomaeError(Exception):
    """Base of every error that is meant for a person to read."""


class SlideError(HistomaeError, OSError):
    """A slide cannot be opened or read."""


class MissingMppError(SlideError):
    """The file gives no believable pixel size, and none was supplied."""


class UpsamplingError(HistomaeError, ValueError):
    """More resolution was asked for than the slide has."""


class AnnotationError(HistomaeError, ValueError):
    """A file of regions cannot be understood."""


class ConfigError(HistomaeError, ValueError):
    """A setting is wrong.

    Parameters
    ----------
    field
        Name of the setting, as in the dataclass.
    reason
        What is wrong, the value received, and what to do.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class CheckpointError(HistomaeError, ValueError):
    """A file of weights does not hold what it should."""


class FeatureError(HistomaeError, ValueError):
    """A file of tile features does not hold what it should, or does not fit others."""


class LabelError(HistomaeError, ValueError):
    """A table of labels cannot be understood, or splits a patient."""


class DataSetError(HistomaeError, ValueError):
    """A folder is not the data set that it should be, or a picture in it is damaged."""


class ReportError(HistomaeError, ValueError):
    """A file is no report of an examination, or is damaged."""


class RunError(HistomaeError):
    """A training run cannot start, go on or be read."""


class MemoryRanOutError(RunError):
    """A step of a training does not fit into memory."""


class DiskRefusedError(RunError):
    """A file of a run cannot be written.

    ``reason`` is the sentence without what to do, which depends on who waits for it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} Make room, then resume.")
        self.reason = reason


class NotEnoughDataError(HistomaeError, ValueError):
    """There is too little tissue or there are too few labels to go on."""


class DownloadError(HistomaeError, OSError):
    """A file could not be fetched, or is not the one expected."""


class ClusterError(HistomaeError, ConnectionError):
    """The machines that should share the work do not answer, or do not agree."""


class DependencyError(HistomaeError, ImportError):
    """A library is missing, too old, or does not fit another one."""
