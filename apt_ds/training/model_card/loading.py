"""How a written model is loaded: which programs read its form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import AUTO_CLASSES


@dataclass(frozen=True)
class Form:
    """What a written folder is.

    Attributes:
        auto_class: the class of transformers that loads it.
        architecture: the model class that config.json names.
        own_code: whether a modelling file of the folder builds it, since its layers have different sizes.
        quantized: whether its weights stay quantized.
        generates: whether it is a causal language model.
    """

    auto_class: str
    architecture: str
    own_code: bool
    quantized: bool
    generates: bool

    @property
    def vllm(self) -> bool:
        """Whether vLLM reads it: a stock causal language model."""
        return self.generates and not self.own_code

    @property
    def llama_cpp(self) -> bool:
        """Whether it can become a GGUF file: weights must not be quantized yet."""
        return self.generates and not self.quantized


def form_of(folder: Path, task_type: str) -> Form:
    """What the config.json of a written model says of its form.

    Args:
        folder: the model's folder.
        task_type: a constant of `config/tasks.py`.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    return Form(
        auto_class=AUTO_CLASSES[task_type].__name__,
        architecture=(config.get("architectures") or ["an unnamed class"])[0],
        own_code="auto_map" in config,
        quantized="quantization_config" in config,
        generates=task_type == LANGUAGE_MODEL,
    )
