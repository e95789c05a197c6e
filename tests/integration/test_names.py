"""Locals are named after what they hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

NOTHING = {"told", "found", "made", "said", "held", "of", "thing", "got"}


def locals_of(function: ast.FunctionDef) -> Iterator[tuple[str, int]]:
    """Names that a function binds, its parameters and the functions inside it, with their lines."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef) and node is not function:
            yield node.name, node.lineno


def say_nothing(source: str) -> set[tuple[str, int]]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return {(name, line) for function in functions for name, line in locals_of(function) if name in NOTHING}


@pytest.mark.parametrize("folder", ["apt_ds", "tests", "launchers"])
def test_locals_have_the_name_of_what_they_hold(folder: str) -> None:
    files: dict[Path, set[tuple[str, int]]] = {
        path.relative_to(ROOT): say_nothing(path.read_text(encoding="utf8")) for path in (ROOT / folder).rglob("*.py")
    }
    assert files
    assert {str(path): names for path, names in files.items() if names} == {}


def test_the_check_sees_variables_parameters_and_inner_functions() -> None:
    source = "def f(told):\n    found = [made for made in told]\n    def said(): pass\n    return found.got\n"
    assert {name for name, _ in say_nothing(source)} == {"told", "found", "made", "said"}
