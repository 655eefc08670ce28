"""Keeps the window from dying when PyTorch is imported after it was opened.

PyTorch imports ``triton`` if it is installed. Triton's library carries an LLVM of its
own; Mesa, which draws OpenGL on machines without a graphics driver (and on AMD's),
brings another one, ``libLLVM.so``. Loading triton's into a process that drew with
Mesa's ends in a segmentation fault (seen with triton 3.9 and Mesa's LLVM 15). Nothing
in the window needs triton, which only compiles kernels for ``torch.compile``, and
PyTorch does without it when its import fails. So its import fails, in that one
situation in which it would be fatal. Trainings run in a process of their own, where
nothing draws, and are not concerned.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

#: Where Linux lists the libraries that a process has loaded.
LOADED = Path("/proc/self/maps")


class LlvmGuard(MetaPathFinder):
    """Refuses ``import triton`` once Mesa's LLVM is in the process."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return None, so that others look; or refuse, as if it were not installed."""
        if fullname == "triton" and mesa_llvm_is_loaded():
            raise ModuleNotFoundError(
                "triton is not loaded: its LLVM and that of Mesa, which drew the "
                "window, cannot live in one process.",
                name="triton",
            )
        return None


def mesa_llvm_is_loaded() -> bool:
    """Whether this process has loaded the LLVM library that Mesa uses (Linux only)."""
    try:
        return "/libLLVM" in LOADED.read_text("utf-8", errors="replace")
    except OSError:
        return False


def install() -> None:
    """Put the guard in place, once."""
    if sys.platform == "linux" and not any(
        isinstance(finder, LlvmGuard) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, LlvmGuard())
