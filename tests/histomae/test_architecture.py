"""The plan of the house holds: what imports what, and what is written nowhere."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import histomae
import napari_histomae

REPOSITORY = Path(__file__).parents[2]
PACKAGES = (Path(histomae.__file__).parent, Path(napari_histomae.__file__).parent)
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
#: Slow to load, or of a window; of no use to who only asks for help.
HEAVY = (
    *("torch", "timm", "torchvision", "napari", "qtpy", "PyQt6", "matplotlib"),
    "tensorboardX",
)
#: Folders that are not the project's text.
NOT_OURS = frozenset(
    {
        ".git",
        ".venv",
        "venv",
        "env",
        "__pycache__",
        "build",
        "dist",
        "demo-output",
        "runs",
    }
    | {".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache"}
    | {".hypothesis", "_build", "node_modules"}
)
HELP = """
import sys
sys.argv = ["histomae", *{arguments}]
from histomae.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded_by(code: str) -> set[str]:
    """Return the top names of the modules that a new process has after some code."""
    report = "import sys; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        env=None,
        cwd=REPOSITORY / "training",
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stderr.split()}


# Imports ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        # One after the other in one process: none of them may load anything heavy.
        "import histomae, histomae.config, histomae.events, histomae.files\n"
        "import histomae.cli, histomae.doctor\n"
        "import histomae.learn.runs, histomae.learn.supervise\n"
        "import histomae.evaluate.runs, histomae.evaluate.curves\n"
        "import histomae.slides.slide, histomae.slides.crops, histomae.data.splits\n"
        "import histomae.exchange.qupath, histomae.exchange.tables\n"
        "sys_path = __import__('sys').path; sys_path.insert(0, '..')\n"
        "import napari_histomae",
        HELP.format(arguments=["--help"]),
        HELP.format(arguments=["pretrain", "--help"]),
    ],
    ids=["modules", "help", "help-pretrain"],
)
def test_nothing_heavy_is_loaded_early(code):
    assert not loaded_by(code) & set(HEAVY)


def test_every_import_contract_holds():
    pytest.importorskip("importlinter")
    # In a process of its own: it switches off the loggers that exist.
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(config_filename=sys.argv[1], no_cache=True))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(REPOSITORY / "pyproject.toml")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


# Strangers' files (R17) ------------------------------------------------------

FORBIDDEN_CALLS = frozenset(
    {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler"}
    | {"torch.jit.load", "torch.export.load", "torch.hub.load", "torch.package"}
    | {"np.memmap", "numpy.memmap", "mmap.mmap", "shelve.open", "marshal.loads"}
    | {"safetensors.safe_open", "safe_open", "safetensors.torch.load_file"}
    | {"tifffile.memmap", "pa.memory_map", "pyarrow.memory_map", "os.system"}
)
FORBIDDEN_MODULES = frozenset(
    {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "mmap"}
)
#: An error to catch, when torch refuses a file.
HARMLESS = frozenset({"pickle.UnpicklingError"})
FORBIDDEN_OPTIONS = frozenset(
    {("weights_only", False), ("allow_pickle", True), ("memory_map", True)}
    | {("mmap", True), ("shell", True), ("trust_remote_code", True)}
)
#: Loading these without saying so may unpickle, or map a file into memory.
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "pq.read_table": ("memory_map", False),
}


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` of an attribute, ``a`` of a name, ``?`` of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def options_of(call: ast.Call) -> dict[str, object]:
    return {
        option.arg: option.value.value
        for option in call.keywords
        if option.arg and isinstance(option.value, ast.Constant)
    }


def dangers_in(source: str) -> list[str]:
    """Return what a source has that could run or map a stranger's file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            whole = getattr(node, "module", None) or ""
            full = [f"{whole}.{name}" if whole else name for name in names]
            found += [
                name
                for name in full
                if name.split(".")[0] in FORBIDDEN_MODULES and name not in HARMLESS
            ]
            found += [name for name in full if name in FORBIDDEN_CALLS]
        if not isinstance(node, ast.Call):
            continue
        name, options = dotted(node.func), options_of(node)
        if name in FORBIDDEN_CALLS:
            found.append(f"{name}()")
        found += [
            f"{name}({key}={value})"
            for key, value in options.items()
            if (key, value) in FORBIDDEN_OPTIONS
        ]
        if name in MUST_SAY and MUST_SAY[name] not in options.items():
            found.append(f"{name}() without {MUST_SAY[name]}")
        if name.endswith(".load_state_dict_from_url"):
            found.append(f"{name}()")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import joblib",
        "from mmap import mmap",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=True, mmap=True)",
        "torch.jit.load(path)",
        "torch.export.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.memmap(path)",
        "pq.read_table(path)",
        "from safetensors import safe_open",
        "safetensors.torch.load_file(path)",
    ],
)
def test_a_danger_is_seen(source):
    assert dangers_in(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "Model(3).eval()",
        "from pickle import UnpicklingError",
        "torch.load(file, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "json.load(file)",
    ],
)
def test_no_danger_is_imagined(source):
    assert dangers_in(source) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_file_of_a_stranger_is_run_or_mapped(path):
    assert dangers_in(path.read_text("utf-8")) == []


# Names -----------------------------------------------------------------------


def texts() -> list[Path]:
    """Return the project's files."""
    return [
        path
        for path in REPOSITORY.rglob("*")
        if path.is_file()
        and not NOT_OURS & set(path.relative_to(REPOSITORY).parts)
        and not any(part.endswith(".egg-info") for part in path.parts)
    ]


#: Written in pieces, so that this file does not name them either.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("anaconda", "org"),
        ("anaconda", "com"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("download", "pytorch", "org"),
    )
]


def test_no_package_registry_is_named():
    files = texts()
    assert REPOSITORY / "pyproject.toml" in files
    naming = [
        (str(path.relative_to(REPOSITORY)), host)
        for path in files
        for host in REGISTRIES
        if host.encode() in path.read_bytes()
    ]
    assert naming == []
