"""PyTorch can be imported after the window was opened."""

import subprocess
import sys
from pathlib import Path

import pytest

import napari_histomae
from napari_histomae import _llvm_guard

REPOSITORY = Path(napari_histomae.__file__).parents[1]


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Stand-in for the list of libraries that the process has loaded."""
    path = tmp_path / "maps"
    monkeypatch.setattr(_llvm_guard, "LOADED", path)
    return path


def test_triton_is_refused_only_beside_mesas_llvm(loaded):
    guard = _llvm_guard.LlvmGuard()
    assert guard.find_spec("triton", None) is None
    loaded.write_text("7f00-7f01 r-xp 0 08:01 9 /usr/lib/libGL.so.1\n")
    assert guard.find_spec("triton", None) is None
    loaded.write_text("7f00-7f01 r-xp 0 08:01 9 /usr/lib/x86_64/libLLVM-15.so.1\n")
    with pytest.raises(ModuleNotFoundError, match="Mesa"):
        guard.find_spec("triton", None)
    assert guard.find_spec("torch", None) is None
    assert guard.find_spec("triton.language", None) is None


def test_it_is_installed_once():
    _llvm_guard.install()
    _llvm_guard.install()
    guards = [x for x in sys.meta_path if isinstance(x, _llvm_guard.LlvmGuard)]
    assert len(guards) == (1 if sys.platform == "linux" else 0)


@pytest.mark.timeout(180)
def test_torch_is_imported_after_a_window_drew(qapp):
    """In a fresh process: this one may have imported it before."""
    code = (
        "import napari, napari_histomae\n"
        "viewer = napari.Viewer(show=False)\n"
        "import torch\n"
        "from torch.utils._triton import has_triton_package\n"
        "has_triton_package()\n"
        "print(torch.nn.functional.gelu(torch.zeros(2)).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[0.0, 0.0]" in done.stdout
