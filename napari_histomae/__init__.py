"""The napari plugin: slides, training and results in one window.

What napari needs is named in ``napari.yaml`` and imported when it is first asked for.
"""

from napari_histomae import _llvm_guard

_llvm_guard.install()
