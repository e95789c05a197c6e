"""Write a finished model as GGUF for llama.cpp and Ollama: `python -m apt_ds.models.export.gguf OUT/model`."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from apt_ds.config import cli
from apt_ds.config.errors import UserError
from apt_ds.models.export import gguf_converter, gguf_quantizer, gguf_rules, ollama
from apt_ds.models.export.gguf_folder import added_tokens, read_config

USAGE = "python -m apt_ds.models.export.gguf DIR [--outtype f16|bf16|f32|q8_0|q4_k_m] [--into FILE]"
PLAIN = ("F32", "F16", "BF16")
PHI_3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def write_gguf(folder: Path, outtype: str = "f16", into: Path | None = None) -> Path:
    """Write a model folder as a GGUF file, whole or not at all, with an Ollama Modelfile beside it.

    Args:
        folder: a folder that `--output_dir` contains, or any other of a decoder that llama.cpp knows.
        outtype: one of `gguf_rules.OUTTYPES`.
        into: the file. None: beside the folder, under its name.

    Returns:
        The file.

    Raises:
        UserError: llama.cpp has no place for the model, a tool is missing, or the file cannot be written.
    """
    into = into or folder.with_name(f"{folder.resolve().name}-{outtype}.gguf")
    if into.suffix != ".gguf":
        raise UserError(f"--into {into}: the name of the file must end with .gguf")
    plan = gguf_rules.plan_of(folder, outtype)
    if importlib.util.find_spec("gguf") is None:
        raise UserError("GGUF files require the package gguf: pip install 'apt_ds[gguf]'")
    converter = gguf_converter.find_converter()
    if outtype == "q4_k_m":
        gguf_quantizer.check_quantizer()
    partial, plain = (into.with_name(f"{into.name}.{ending}") for ending in ("tmp", "16bit.tmp"))
    first = plain if outtype == "q4_k_m" else partial
    job = {"folder": str(folder.resolve()), "into": str(first.resolve()), "name": name_of(folder)} | asdict(plan)
    job["outtype"] = outtype if outtype != "q4_k_m" else "bf16" if dtype_of(folder) == "bfloat16" else "f16"
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        gguf_converter.run_converter(converter, job)
        if outtype == "q4_k_m":
            gguf_quantizer.quantize(plain, partial)
        modelfile, notes = ollama.modelfile(folder, into.name, plan.context)
        into.with_suffix(".Modelfile").write_text(modelfile, encoding="utf8")
        partial.replace(into)
    except OSError as error:
        raise UserError(f"cannot write {into}: {error.strerror or cli.one_line(str(error))}") from None
    finally:
        for file in (partial, plain):
            file.unlink(missing_ok=True)
    report(into, outtype, plan, notes)
    return into


def name_of(folder: Path) -> str:
    """The name of the model in the file: that of its folder.

    llama.cpp changes four tokens of a model whose name contains phi3 or phi-3, and loads no such file without them.
    """
    name = folder.resolve().name
    if added_tokens(folder) >= PHI_3_TOKENS:
        return name
    return re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE)


def dtype_of(folder: Path) -> str:
    """The dtype that a folder's configuration names."""
    config = read_config(folder)
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def report(into: Path, outtype: str, plan: gguf_rules.Plan, notes: list[str]) -> None:
    """Print what was written, which matrices kept more bits, and where llama.cpp differs from the model."""
    import gguf

    kinds: Counter[str] = Counter()
    more: defaultdict[str, set[int]] = defaultdict(set)
    for tensor in gguf.GGUFReader(into).tensors:
        kinds[tensor.tensor_type.name] += 1
        block = 256 if outtype == "q4_k_m" else 32
        if outtype in gguf_rules.BLOCK and len(tensor.shape) > 1 and tensor.shape[0] % block:
            name = re.sub(r"blk\.\d+\.", "blk.*.", tensor.name)
            more[f"{name} as {tensor.tensor_type.name}"].add(int(tensor.shape[0]))
    types = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"wrote {into} ({into.stat().st_size / 1e6:.1f} MB; tensors: {types})")
    if more:
        names = "; ".join(f"{name} ({', '.join(map(str, sorted(rows)))})" for name, rows in sorted(more.items()))
        print(f"rows that are no whole blocks of {block} weights keep more bits: {names}")
    if plan.context:
        print(f"start llama.cpp with a context of at most {plan.context} tokens; beyond, answers are not the model's")
    for note in notes:
        print(note)
    print(f"run it: ollama create {into.stem} -f {into.with_suffix('.Modelfile')}; or llama-cli -m {into}", flush=True)


def main() -> None:
    """Do what the command line says. Raises UserError."""
    parser = cli.Parser(USAGE)
    parser.add_argument("folder", type=Path, help="the model folder, such as OUT/model")
    parser.add_argument(
        "--outtype", choices=gguf_rules.OUTTYPES, default="f16", help="type of the weights; default f16"
    )
    parser.add_argument("--into", type=Path, default=None, help="the file; default: beside the folder")
    given = parser.read(sys.argv[1:])
    write_gguf(given.folder, given.outtype, given.into)


if __name__ == "__main__":
    from apt_ds.runtime import exit_status

    exit_status.main(main)
