"""What a machine lacks to compile the optimizer of a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from deepspeed import git_version_info
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import FusedAdamBuilder as CpuFusedAdamBuilder
from deepspeed.ops.op_builder import OpBuilder
from deepspeed.ops.op_builder.fused_adam import FusedAdamBuilder
from torch.utils import cpp_extension

from apt_ds.runtime.zero.compilers import compiled_optimizer, missing_compilers, missing_tools

OFFLOAD: dict[str, Any] = {
    "optimizer": {"type": "AdamW", "params": {}},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
}
FUSED: dict[str, Any] = {"optimizer": {"type": "AdamW", "params": {"torch_adam": False}}, "zero_optimization": {}}
PLAIN: dict[str, Any] = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}, "zero_optimization": {}}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without compiler and ninja, on which nothing was ever compiled. Returns its folder of programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    return programs


def install(programs: Path, *names: str) -> None:
    """Put programs there that do nothing and succeed."""
    for name in names:
        program = programs / name
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)


@pytest.mark.parametrize(
    ("config", "builder"),
    [(OFFLOAD, "CPUAdamBuilder"), (FUSED, "FusedAdamBuilder"), (PLAIN, ""), ({"zero_optimization": {}}, "")],
)
def test_which_optimizer_is_compiled(config: dict[str, Any], builder: str) -> None:
    assert compiled_optimizer(config) == builder


def test_an_offloaded_optimizer_needs_a_compiler_and_ninja(bare: Path) -> None:
    line = missing_compilers(OFFLOAD)
    assert "cpu_adam" in line and "ninja" in line and "no 'c++' on PATH" in line and "nvcc" not in line
    assert "remove offload_optimizer" in line
    install(bare, "ninja")
    assert "ninja (" not in missing_compilers(OFFLOAD) and "no 'c++' on PATH" in missing_compilers(OFFLOAD)
    install(bare, "c++")
    assert missing_compilers(OFFLOAD) == ""
    assert missing_compilers(PLAIN) == ""


def test_another_compiler_may_be_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(bare, "ninja", "ccache")
    monkeypatch.setenv("CXX", "ccache g++-12")
    assert missing_compilers(OFFLOAD) == ""
    monkeypatch.setenv("CXX", "clang++")
    assert "no 'clang++' on PATH" in missing_compilers(OFFLOAD)


def test_what_is_compiled_already_needs_ninja_alone(bare: Path, tmp_path: Path) -> None:
    """Ninja looks whether it is up to date."""
    (tmp_path / "extensions" / "cpu_adam").mkdir(parents=True)
    (tmp_path / "extensions" / "cpu_adam" / "cpu_adam.so").touch()
    assert "needs ninja (pip install ninja): install" in missing_compilers(OFFLOAD)
    install(bare, "ninja")
    assert missing_compilers(OFFLOAD) == ""


def test_what_came_with_deepspeed_or_is_loaded_needs_nothing(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(git_version_info.installed_ops, "cpu_adam", True)
    monkeypatch.setattr(git_version_info, "accelerator_name", get_accelerator()._name)
    assert missing_compilers(OFFLOAD) == ""
    monkeypatch.setattr(git_version_info, "accelerator_name", "cuda")
    assert missing_compilers(OFFLOAD) != ""
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {"cpu_adam": object()})
    assert missing_compilers(OFFLOAD) == ""


def test_fused_adam_needs_nvcc_on_a_gpu(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(bare, "ninja", "c++")
    # the builder of the CUDA accelerator, and that of the CPU
    (missing,) = missing_tools(FusedAdamBuilder())
    assert "nvcc" in missing and missing_tools(CpuFusedAdamBuilder()) == []
    monkeypatch.setattr(get_accelerator(), "create_op_builder", lambda name: FusedAdamBuilder())
    assert "torch_adam" in missing_compilers(FUSED) and "nvcc" in missing_compilers(FUSED)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert missing_tools(FusedAdamBuilder()) == [missing], "a runtime without a compiler"
    install(bare, "nvcc")
    assert missing_tools(FusedAdamBuilder()) == []


def test_this_machine_has_what_its_tests_need() -> None:
    if shutil.which("c++") is None:
        pytest.skip(f"no C++ compiler on {os.environ['PATH']}")
    assert missing_compilers(OFFLOAD) == ""
