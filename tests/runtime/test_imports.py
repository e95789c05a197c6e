"""Which modules import DeepSpeed and torch.distributed. import-linter sees top-level packages only."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.paths import ROOT

PACKAGE = ROOT / "apt_ds"


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports or reaches as `torch.distributed`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{node.value.id}.{node.attr}")
    return names


def importers(name: str) -> set[str]:
    """Modules of the package that import `name`, as paths below it."""
    files = [(path, imported(path)) for path in PACKAGE.rglob("*.py")]
    assert len(files) > 100
    return {
        path.relative_to(PACKAGE).as_posix()
        for path, names in files
        if any(module == name or module.startswith(f"{name}.") for module in names)
    }


def test_only_runtime_zero_imports_deepspeed() -> None:
    modules = importers("deepspeed")
    assert "runtime/zero/engine.py" in modules
    assert {path for path in modules if not path.startswith("runtime/zero/")} == set()


def test_only_collectives_and_zero_import_torch_distributed() -> None:
    modules = importers("torch.distributed")
    assert "runtime/collectives.py" in modules
    assert {path for path in modules if not path.startswith("runtime/zero/")} == {"runtime/collectives.py"}
