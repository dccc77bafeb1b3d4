"""The house rule of imports: a module imports only from lower layers (and from its own private modules)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cltt"
LAYERS: dict[float, list[str]] = {
    -2: ["errors"],
    -1: ["cli"],
    0: ["config", "format", "distributed"],
    0.5: ["source", "locks"],
    1: ["indexer", "windows", "reader", "loss", "models", "checkpoint", "pixels"],
    2: ["sampler", "pipeline"],
    3: ["loader"],
    4: ["trainer", "evaluation", "visualize"],
    5: ["app"],
    6: ["demo", "doctor"],
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
# Private modules live with the one public module that may import them.
OWNER: dict[str, str] = {
    "_picture": "source",
    "_groups": "indexer",
    "_plan": "indexer",
    "_planning": "indexer",
    "_pack": "indexer",
    "_merge": "indexer",
    "_reports": "indexer",
    "_verify": "indexer",
    "_workers": "indexer",
    "_folder": "reader",
    "_gradcache": "trainer",
    "_history": "trainer",
    "_progress": "app",
    "_records": "app",
    "_shards": "app",
    "_probe": "evaluation",
    "_eval_data": "evaluation",
    "_loss_chunked": "loss",
    "_loss_triton": "loss",
    "_permutation": "sampler",
    "_runs": "sampler",
    "_augment": "pipeline",
    "_dali": "pipeline",
    "_decode": "pipeline",
    "_framing": "pipeline",
    "_frames": "loader",
    "_cache": "loader",
    "_prefetch": "loader",
    "_render": "demo",
    "_curves": "visualize",
    "_damage": "visualize",
    "_figures": "visualize",
    "_gallery": "visualize",
    "_stats": "visualize",
    "_stats_page": "visualize",
    "_views": "visualize",
}
HEAVY = {"torch", "nvidia", "triton", "cv2"}
LIGHT = ["errors", "cli", "config", "format", "indexer", "windows", "reader", "sampler"]
MAX_LINES = 420


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(name: str) -> list[str]:
    """Top names imported by a module: 'cltt.x' as 'cltt.x', others by their first part."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "cltt":
            found += [f"cltt.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}.py: write imports in full, not relative"
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("name", modules())
def test_imports_go_down(name: str) -> None:
    owner = OWNER.get(name, name)
    assert owner in LAYER, f"{name}.py has no layer; add it to LAYERS or OWNER"
    for target in (module.split(".")[1] for module in imports(name) if module.startswith("cltt.")):
        if OWNER.get(target, target) == owner:
            continue
        assert target not in OWNER, f"{name}.py imports {target}.py, which is private to {OWNER[target]}.py"
        assert LAYER[target] < LAYER[owner], f"{name}.py (layer {LAYER[owner]}) imports {target}.py ({LAYER[target]})"


@pytest.mark.parametrize("name", modules())
def test_only_the_pipeline_imports_dali(name: str) -> None:
    uses = any(module.split(".")[0] == "nvidia" for module in imports(name))
    assert not uses or OWNER.get(name, name) == "pipeline"


@pytest.mark.parametrize("name", modules())
def test_modules_stay_short(name: str) -> None:
    assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= MAX_LINES
