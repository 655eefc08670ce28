"""The examination of an installation: what it finds, and the cures it knows."""

import importlib
import importlib.metadata
import importlib.util
import sys

import pytest

from histomae import cli, doctor


def found(what: str) -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.what == what)


@pytest.fixture
def installed(monkeypatch):
    """Return a function that pretends that a version of a package is installed."""
    true_version = importlib.metadata.version

    def pretend(package, version):
        def answer(name):
            if name != package:
                return true_version(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", answer)

    return pretend


@pytest.fixture
def failing_import(monkeypatch):
    """Return a function that makes the import of a module fail in the doctor."""
    true_import = importlib.import_module

    def pretend(module, error):
        def load(name, package=None):
            if name == module:
                raise error
            return true_import(name, package)

        monkeypatch.setattr(importlib, "import_module", load)

    return pretend


def test_all_is_well_here(capsys):
    findings = list(doctor.examine())
    assert [finding for finding in findings if not finding.healthy] == []
    names = [finding.what for finding in findings]
    for name in ("Python", "torch", "device", "OpenSlide", "slide formats"):
        assert name in names
    assert len(set(names)) == len(names)
    assert ".ndpi" in found("slide formats").state
    cli.main(["doctor"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(findings)
    assert all(line.startswith("ok   ") for line in said)


@pytest.mark.parametrize(
    ("package", "old", "reason", "cure"),
    [
        ("torch", "2.9.1+cpu", "CVE-2026-24747", '"torch>=2.10"'),
        ("openslide-bin", "4.0.0.9", "CVE-2026-48977", '"openslide-bin>=4.0.1"'),
        ("pillow", "12.2.0", "CVE-2026-55798", '"pillow>=12.3"'),
    ],
)
def test_versions_that_can_be_attacked(package, old, reason, cure, installed, capsys):
    installed(package, old)
    finding = found(package)
    assert not finding.healthy
    assert finding.state == old
    assert reason in finding.cure
    assert f"pip install --upgrade {cure}" in finding.cure
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor"])
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert f"CURE {package}" in said
    assert reason in said


@pytest.mark.parametrize("version", ["2.10", "2.10.0+cu126", "2.11.0a0", "3.0"])
def test_versions_that_are_new_enough(version, installed):
    installed("torch", version)
    assert found("torch").healthy


def test_the_floors_are_those_of_the_package():
    required = importlib.metadata.requires("napari-histomae")
    for package, (floor, _) in doctor.FLOORS.items():
        assert f"{package}>={floor}" in required


def test_what_is_missing(installed):
    installed("timm", None)
    finding = found("timm")
    assert (finding.healthy, finding.state) == (False, "missing")
    assert finding.cure == "pip install timm"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        ImportError("libcudart.so.12: cannot open shared object file"),
        OSError("undefined symbol: _ZN3c10\nmore"),
        AttributeError("partially initialized module 'torchvision'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_torch_and_torchvision_that_do_not_fit(error, failing_import):
    failing_import("torchvision", error)
    finding = found("torch and torchvision")
    assert not finding.healthy
    assert finding.state.startswith("do not fit each other (")
    assert "\n" not in finding.state
    assert "--force-reinstall torch torchvision" in finding.cure


def test_torchvision_that_is_not_there(failing_import):
    error = ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    failing_import("torchvision", error)
    finding = found("torch and torchvision")
    assert (finding.healthy, finding.state) == (False, "torchvision is missing")
    assert finding.cure == "pip install torchvision"


def test_without_torch_the_rest_is_still_examined(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not found("device").healthy
    assert found("OpenSlide").healthy


def test_without_openslide_the_rest_is_still_examined(monkeypatch):
    for name in ("openslide", "histomae.slides.slide"):
        monkeypatch.setitem(sys.modules, name, None)
    finding = found("OpenSlide")
    assert not finding.healthy
    assert finding.state.startswith("cannot be loaded")
    assert "openslide-bin" in finding.cure
    assert not found("slide formats").healthy
    assert found("Qt binding").healthy


def test_a_library_of_openslide_that_is_too_old(monkeypatch):
    import openslide

    monkeypatch.setattr(openslide, "__library_version__", "4.0.0")
    finding = found("OpenSlide")
    assert not finding.healthy
    assert "CVE-2026-54604" in finding.cure


def test_a_slide_that_cannot_be_read(monkeypatch):
    monkeypatch.setattr(doctor, "_tiny_slide", lambda folder: folder / "none.tiff")
    finding = found("slide formats")
    assert not finding.healthy
    assert "none.tiff" in finding.state


def test_without_qt_the_command_line_works(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finding = found("Qt binding")
    assert not finding.healthy
    assert "the command line works" in finding.state
    assert finding.cure == 'pip install "napari[all]"'


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 14))
    finding = next(doctor.examine())
    assert (finding.what, finding.healthy) == ("Python", False)
