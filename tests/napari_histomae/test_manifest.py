"""The manifest names only what exists."""

import subprocess
import sys
from pathlib import Path

import pytest
from npe2 import PluginManifest

import napari_histomae

PACKAGE = Path(napari_histomae.__file__).parent


@pytest.fixture(scope="module")
def manifest():
    return PluginManifest.from_file(PACKAGE / "napari.yaml")


def test_every_command_named_is_declared(manifest):
    parts = manifest.contributions
    declared = {command.id for command in parts.commands}
    named = [
        *(reader.command for reader in parts.readers),
        *(writer.command for writer in parts.writers),
        *(widget.command for widget in parts.widgets),
        *(sample.command for sample in parts.sample_data),
        *(item.command for menu in parts.menus.values() for item in menu),
    ]
    assert set(named) <= declared
    assert declared <= set(named), "a command that nothing uses"


def test_everything_named_can_be_imported(manifest):
    manifest.validate_imports()


def test_menus_are_ones_that_plugins_may_fill(manifest):
    from napari._app_model.constants._menus import is_menu_contributable

    assert manifest.contributions.menus
    assert all(map(is_menu_contributable, manifest.contributions.menus))


def test_the_link_at_the_top_is_the_manifest():
    top = PACKAGE.parent / "napari.yaml"
    if not top.exists():
        pytest.skip("an installed package has no link")
    assert top.read_text("utf-8") == (PACKAGE / "napari.yaml").read_text("utf-8")


def test_finding_the_plugin_imports_nothing_heavy():
    code = (
        "import sys, napari_histomae, napari_histomae._reader\n"
        "print([m for m in ('torch', 'timm', 'napari', 'matplotlib', 'sklearn', 'qtpy')"
        " if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert said.stdout.strip() == "[]"


def test_the_door_and_the_jobs_import_no_torch():
    code = (
        "import sys\n"
        "from napari_histomae import _layers, _session, _jobs, _writer, _sample_data\n"
        "import napari_histomae._widgets.common\n"
        "print([m for m in ('torch', 'timm', 'sklearn') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert said.stdout.strip() == "[]"
