"""Converts a model folder to GGUF with llama.cpp's own converter, in a process of its own.

`gguf_converter.py` starts it with the converter first on the path, and says why. Of this package it imports only
`gguf_layers.py` and `gguf_vocabulary.py`, which import nothing of it.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from apt_ds.models.export.gguf_layers import by_layer, module_of
from apt_ds.models.export.gguf_vocabulary import add_merged_pieces

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


class Refused(Exception):  # noqa: N818 - what happened, for the parent process
    """The converter cannot write this model. Its text is for the user."""


def convert(job: dict[str, Any]) -> None:
    """Write a GGUF file.

    Args:
        job: `folder`, `into`, `outtype`, `name`, and the fields of `gguf_rules.Plan`.
    """
    # the tokenizer is what tokenizer.json says: a class that config.json suggests may build another
    transformers.AutoTokenizer = transformers.PreTrainedTokenizerFast  # type: ignore[assignment, misc]
    conversion, base = importlib.import_module("conversion"), importlib.import_module("conversion.base")
    gguf = importlib.import_module("gguf")
    folder = Path(job["folder"])
    try:
        source = conversion.get_model_class(job["source"])
    except NotImplementedError:
        raise Refused(f"this version of llama.cpp's converter does not know {job['source']}") from None
    hparams = base.ModelBase.load_hparams(folder, False)
    hparams["architectures"] = [job["source"]]
    kind = corrected(source, job["scales"])
    if job["layout"]:
        kind = by_layer(kind, base, gguf, job)
    file_type = gguf.LlamaFileType[FILE_TYPES[job["outtype"]]]
    kind(folder, file_type, Path(job["into"]), hparams=hparams, model_name=job["name"]).write()


def corrected(source: Any, scales: dict[str, float]) -> Any:
    """The converter's class for a family. It also reads tokenizers without a `tokenizer.model`, and scales weights.

    scales: factors of weights, by the name of the module.
    """

    class Converted(source):
        model_arch = source.model_arch

        def set_vocab(self) -> None:
            tokenizer = json.loads((self.dir_model / "tokenizer.json").read_text(encoding="utf8"))
            kind, fallback = tokenizer["model"].get("type"), tokenizer["model"].get("byte_fallback", False)
            if (self.dir_model / "tokenizer.model").is_file():
                super().set_vocab()
            elif kind != "BPE":
                raise Refused(f"the tokenizer is of type {kind}. llama.cpp needs BPE for this family")
            elif fallback:
                add_merged_pieces(self, tokenizer)
            else:
                try:
                    super().set_vocab()
                except (FileNotFoundError, ValueError):  # families that are published with `tokenizer.model`
                    self._set_vocab_gpt2()

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError:
                raise Refused(
                    "llama.cpp's converter does not know how this tokenizer splits text. "
                    "Train with the unchanged tokenizer of a published model, or add its hash to the converter"
                ) from None

        def modify_tensors(self, data: Tensor, name: str, bid: int | None) -> Iterator[tuple[str, Tensor]]:
            factor = scales.get(module_of(name), 1.0)
            for part, value in super().modify_tensors(data, name, bid):
                yield part, value if factor == 1.0 else value * factor

    return Converted


def main() -> None:
    """Do the job in the only argument. A refusal is the last line on stderr, with status 2."""
    logging.basicConfig(level=logging.WARNING)
    try:
        with torch.inference_mode():
            convert(json.loads(sys.argv[1]))
    except Refused as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
