"""What a machine lacks to compile the optimizer that a run needs. DeepSpeed compiles it on its first use."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from deepspeed import git_version_info
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import OpBuilder
from deepspeed.ops.op_builder.builder import CUDAOpBuilder
from torch.utils import cpp_extension

from apt_ds.runtime.zero.engine import Config


def extensions_folder() -> Path:
    """Where torch keeps compiled extensions, as its own `_get_build_directory` finds it."""
    if chosen := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(chosen)
    versions = {"rocm": torch.version.hip, "cu": torch.version.cuda}
    built = next((f"{name}{number.replace('.', '')}" for name, number in versions.items() if number), "cpu")
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return Path(cpp_extension.get_default_build_root(), f"{python}_{built}")


def compiled_optimizer(config: Config) -> str:
    """The builder of the optimizer that DeepSpeed compiles for a resolved configuration, empty where it is torch's.

    FusedAdam runs on the device, CPUAdam on the host.
    """
    section = config.get("optimizer")
    if section is None or section.get("params", {}).get("torch_adam", False):
        return ""
    return "CPUAdamBuilder" if "offload_optimizer" in config.get("zero_optimization", {}) else "FusedAdamBuilder"


def missing_compilers(config: Config) -> str:
    """What this machine lacks for the optimizer of a run and what to do about it, empty where nothing is missing."""
    name = compiled_optimizer(config)
    builder = get_accelerator().create_op_builder(name) if name else None
    missing = missing_tools(builder) if builder is not None else []
    if builder is None or not missing:
        return ""
    instead = (
        "remove offload_optimizer from the DeepSpeed file"
        if name == "CPUAdamBuilder"
        else "set optimizer.params.torch_adam to true in the DeepSpeed file"
    )
    return (
        f"DeepSpeed compiles its optimizer ({builder.name}) on the first start, which needs {' and '.join(missing)}: "
        f"install what is missing on every node, or {instead}"
    )


def missing_tools(builder: OpBuilder) -> list[str]:
    """What is missing to load an operator of DeepSpeed. Nothing for one that is loaded or was built with DeepSpeed."""
    built = git_version_info.installed_ops.get(builder.name) and (
        git_version_info.accelerator_name == get_accelerator()._name
    )
    if built or builder.name in OpBuilder._loaded_ops:
        return []
    # ninja also looks whether an operator that is compiled is up to date
    missing = [] if cpp_extension.is_ninja_available() else ["ninja (pip install ninja)"]
    if (extensions_folder() / builder.name / f"{builder.name}.so").is_file():
        return missing
    compiler = shlex.split(cpp_extension.get_cxx_compiler())[0]
    if shutil.which(compiler) is None:
        missing.append(f"a C++ compiler (no {compiler!r} on PATH; package g++, or CXX)")
    if not Path(sysconfig.get_path("include", scheme="posix_prefix"), "Python.h").is_file():
        missing.append("Python.h (package python3-dev)")
    if isinstance(builder, CUDAOpBuilder) and not _has_nvcc():
        missing.append("nvcc (no CUDA toolkit under CUDA_HOME or on PATH)")
    return missing


def _has_nvcc() -> bool:
    """Whether there is a CUDA toolkit where torch looks for one."""
    return cpp_extension.CUDA_HOME is not None and Path(cpp_extension.CUDA_HOME, "bin", "nvcc").is_file()
