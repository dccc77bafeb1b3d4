"""The structure of cltt/: one package per stage, imports only downward, short files, heavy libraries kept apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import data

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cltt"
# From the lowest up: a package imports from itself and from the layers below its own.
LAYERS: list[set[str]] = [
    {"errors", "text", "machine", "start", "threads"},
    {"region"},
    {"config", "distributed", "files"},
    {"cli"},
    {"metrics", "checkpoint", "source", "sampling", "loss"},
    {"shards", "frames", "models"},
    {"packing", "loader", "export", "doctor"},
    {"sets", "visualize"},
    {"evaluation"},
    {"training"},
    {"commands", "demo"},
    {"__main__", "__init__"},
]
LAYER = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
MAX_LINES = 400
MAX_MODULES = 10
SCRIPT_LINES = 60
SCRIPTS = ("train.py", "inspect_windows.py", "tools/build_shards.py")
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]


def package_of(path: Path) -> str:
    """The package under cltt/ that a module belongs to, or the module itself at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Modules that ``path`` imports anywhere in it, also inside functions, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full, not relative"
            module = node.module or ""
            found |= {f"cltt.{alias.name}" for alias in node.names} if module == "cltt" else {module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_only_go_down(path: Path) -> None:
    assert package_of(path) in LAYER, f"{package_of(path)} is in no layer; add it to LAYERS"
    for module in sorted(imported(path)):
        if module.startswith("cltt.") and (target := module.split(".")[1]) != package_of(path):
            assert LAYER[target] < LAYER[package_of(path)], f"{path} imports {module}, which is not in a layer below"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_only_frames_import_dali(path: Path) -> None:
    assert package_of(path) == "frames" or not any(module.split(".")[0] == "nvidia" for module in imported(path))


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=lambda path: path.name)
def test_folders_are_small(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MAX_MODULES


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_thin(script: str) -> None:
    assert len((ROOT / script).read_text().splitlines()) < SCRIPT_LINES


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_tests_import_from_helpers_alone(path: Path) -> None:
    ours = {module for module in imported(path) if module.split(".")[0] == "tests"}
    allowed = ("tests.helpers", f"tests.{path.parent.name}.conftest", f"tests.{path.parent.name}.fakes")
    assert all(module.startswith(allowed) for module in ours), ours


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_patches_name_no_module_in_a_string(path: Path) -> None:
    """A test replaces an attribute of something that it imports: whoever moves a module finds all that name it."""
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("setattr", "delattr", "patch"):
            target = call.args[0]
            text = isinstance(target, ast.Constant) and isinstance(target.value, str)
            assert not (text or isinstance(target, ast.JoinedStr)), f"{path}, line {call.lineno}: {ast.unparse(call)}"


def loaded_after(code: str, folder: Path) -> set[str]:
    """Heavy libraries that a fresh process has loaded once it has run ``code``."""
    heavy = "{'torch', 'nvidia', 'triton', 'cv2', 'matplotlib'} & {name.split('.')[0] for name in sys.modules}"
    command = [sys.executable, "-c", f"import sys\n{code}\nprint('loaded', *sorted({heavy}))"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_after("import cltt, cltt.__main__", tmp_path) == set()


@pytest.mark.parametrize("name", ["train", "demo"])
def test_help_does_not_wait_for_torch(name: str, tmp_path: Path) -> None:
    code = "import contextlib\nfrom cltt.__main__ import main\n"
    code += f"sys.argv[1:] = [{name!r}, '--help']\nwith contextlib.suppress(SystemExit):\n    main()"
    assert not loaded_after(code, tmp_path) & {"torch", "nvidia", "triton", "matplotlib"}


def test_building_loads_neither_torch_nor_dali(tmp_path: Path) -> None:
    data.make_clips(tmp_path / "frames", {"a": 6, "b": 6})
    code = "from cltt import build_shards\nbuild_shards('frames', 'shards', workers=1)"
    assert not loaded_after(code, tmp_path) & {"torch", "nvidia", "triton", "matplotlib"}


def test_inspecting_loads_neither_torch_nor_dali(tmp_path: Path) -> None:
    data.make_clips(tmp_path / "frames", {"a": 6, "b": 6})
    flags = ["--root-dir", "frames", "--window-size", "3", "--frame-step", "1", "--save-path"]
    code = f"from cltt.visualize.inspect import main\nmain({[*flags, 'w.png']!r})\n"
    code += f"main(['--mode', 'stats', *{[*flags, 's.png']!r}])"
    assert not loaded_after(code, tmp_path) & {"torch", "nvidia", "triton"}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_progress_bars_keep_out_of_log_files(path: Path) -> None:
    """``disable=None`` draws a bar on a terminal alone."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    bars = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "tqdm"]
    assert all("disable" in {keyword.arg for keyword in call.keywords} for call in bars)
