"""Converts a model folder to GGUF with llama.cpp's own converter, in a process of its own.

`gguf_converter.py` starts it with the converter first on the path, and says why. It imports nothing of this package.
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

ZERO_NEURONS = 32  # a block of q8_0
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


def module_of(name: str) -> str:
    """The last module in the name of a weight: q_proj of model.layers.0.self_attn.q_proj.weight."""
    return name.rpartition(".")[0].rpartition(".")[2]


def add_merged_pieces(writer: Any, tokenizer: dict[str, Any]) -> None:
    """Write a BPE over pieces of SentencePiece as llama.cpp's `llama` vocabulary, which merges by scores.

    The score of a token is minus the rank of the merge that makes it, so that both merge in the same order.
    """
    gguf = importlib.import_module("gguf")
    ids, added = tokenizer["model"]["vocab"], {token["id"]: token for token in tokenizer["added_tokens"]}
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(tokenizer["model"]["merges"]):
        ranks.setdefault("".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1), rank)
    count = writer.hparams["vocab_size"]
    texts = {number: text for text, number in ids.items()} | {
        number: token["content"] for number, token in added.items()
    }
    tokens, scores, types = [], [], []
    unknown, kinds = tokenizer["model"].get("unk_token"), gguf.TokenType
    for number in range(count):
        text = texts.get(number)
        tokens.append((f"[PAD{number}]" if text is None else text).encode())
        scores.append(float(-ranks[text]) if text in ranks else -1e6)
        if text is None:
            types.append(kinds.UNUSED)
        elif text == unknown:
            types.append(kinds.UNKNOWN)
        elif number in added:
            types.append(kinds.CONTROL if added[number]["special"] else kinds.USER_DEFINED)
        else:
            types.append(kinds.BYTE if is_byte(text) else kinds.NORMAL)
    out = writer.gguf_writer
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_scores(scores)
    out.add_token_types(types)
    out.add_add_space_prefix(adds_space(tokenizer))
    gguf.SpecialVocab(writer.dir_model, n_vocab=count).add_to_gguf(out)


def adds_space(tokenizer: dict[str, Any]) -> bool:
    """Whether the tokenizer puts a space before a text."""
    found = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")])
    return '"Prepend"' in found or '"prepend_scheme": "first"' in found or '"prepend_scheme": "always"' in found


def is_byte(text: str) -> bool:
    """Whether a token stands for a byte: <0x00> to <0xFF>."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def by_layer(source: Any, base: Any, gguf: Any, job: dict[str, Any]) -> Any:
    """The converter's class for a family, written in an architecture of llama.cpp that has sizes by layer.

    DECI is LLaMA with biases. OpenELM has norms of queries and keys, joined projections and tied embeddings. A sublayer
    without blocks is written with one group, or `ZERO_NEURONS` neurons, of zeros: DECI loses the residual of a layer
    without neurons.
    """
    head_dim, queries, hidden = job["head_dim"], job["queries_per_group"], job["hidden"]
    groups, neurons, scales = job["groups"], job["neurons"], job["scales"]
    joined = job["layout"] == "openelm"
    prefix = "model.layers"

    class Layered(source):
        model_arch = gguf.MODEL_ARCH.OPENELM if joined else gguf.MODEL_ARCH.DECI

        def set_gguf_parameters(self) -> None:
            sizes = [group or 1 for group in groups]
            self.hparams |= {
                "num_attention_heads": [queries * size for size in sizes],
                "num_key_value_heads": sizes,
                "intermediate_size": [size or ZERO_NEURONS for size in neurons],
                "head_dim": head_dim,
            }
            base.TextModel.set_gguf_parameters(self)
            self.gguf_writer.add_rope_dimension_count(head_dim)
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

        def generate_extra_tensors(self) -> Iterator[tuple[str, Tensor]]:
            if job["rope_type"] == "llama3":
                yield from super().generate_extra_tensors()
            for layer in range(len(groups)):
                yield from self.zeros(layer)
            if scales and job["tied"]:
                yield "lm_head.weight", self.model_tensors["model.embed_tokens.weight"]()

        def zeros(self, layer: int) -> Iterator[tuple[str, Tensor]]:
            """The projections of the sublayers that are empty in a layer."""
            shapes: dict[str, tuple[int, int]] = {}
            if not groups[layer]:
                shapes |= {"self_attn.q_proj": (queries * head_dim, hidden), "self_attn.k_proj": (head_dim, hidden)}
                shapes |= {"self_attn.v_proj": (head_dim, hidden), "self_attn.o_proj": (hidden, queries * head_dim)}
            if not neurons[layer]:
                shapes |= {"mlp.gate_proj": (ZERO_NEURONS, hidden), "mlp.up_proj": (ZERO_NEURONS, hidden)}
                shapes |= {"mlp.down_proj": (hidden, ZERO_NEURONS)}
            for name, shape in shapes.items():
                yield f"{prefix}.{layer}.{name}.weight", torch.zeros(shape)
            for name in ("q_norm", "k_norm") if joined and not groups[layer] else ():
                yield f"{prefix}.{layer}.self_attn.{name}.weight", torch.ones(head_dim)

        def modify_tensors(self, data: Tensor, name: str, bid: int | None) -> Iterator[tuple[str, Tensor]]:
            for part, value in split(name, data, groups[bid] if bid is not None else 0, job):
                yield from self.one_tensor(value, part, bid)

        def one_tensor(self, data: Tensor, name: str, bid: int | None) -> Iterator[tuple[str, Tensor]]:
            module = module_of(name)
            if module in scales:
                data = data * scales[module]
            if module in ("q_proj", "k_proj") and not joined:
                data = interleave(data, head_dim)
            if joined and module in ("q_proj", "k_proj", "v_proj"):
                parts = self.__dict__.setdefault("waiting", {}).setdefault(bid, {})
                parts[module] = data
                if len(parts) < 3:
                    return
                data = torch.cat([parts[part] for part in ("q_proj", "k_proj", "v_proj")])
                yield self.format_tensor_name(gguf.MODEL_TENSOR.ATTN_QKV, bid), data
                return
            yield from base.ModelBase.modify_tensors(self, data, name, bid)

    return Layered


def split(name: str, data: Tensor, groups: int, job: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The projections that a weight joins, by rows. Other weights as they are."""
    if name.endswith(".qkv_proj.weight"):
        rows = [job["queries_per_group"] * groups * job["head_dim"], *[groups * job["head_dim"]] * 2]
        parts = ["q_proj", "k_proj", "v_proj"]
    elif name.endswith(".gate_up_proj.weight"):
        rows, parts = [data.shape[0] // 2] * 2, ["gate_proj", "up_proj"]
    else:
        yield name, data
        return
    start, stem = 0, name.rpartition(".")[0].rpartition(".")[0]
    for part, count in zip(parts, rows, strict=True):
        yield f"{stem}.{part}.weight", data[start : start + count]
        start += count


def interleave(data: Tensor, head_dim: int) -> Tensor:
    """Rows in the order of llama.cpp's rotary positions: both halves of each head alternate."""
    heads = data.reshape(data.shape[0] // head_dim, 2, head_dim // 2, *data.shape[1:])
    return heads.swapaxes(1, 2).reshape(data.shape)


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
