"""The trainer under napari-histomae: slides in, trained encoders and maps out.

It knows nothing of any window; ``napari_histomae`` is the plugin above it.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("napari-histomae")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
