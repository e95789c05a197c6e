"""Models that are only sizes: random weights by name or from any config.json, random tokens to train on.

Nothing is read from the network or written to disk, so that a machine with neither can measure a 13B model.
"""

from __future__ import annotations

import os

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from apt_ds.analysis.bench.llamas import LLAMAS, llama_config
from apt_ds.analysis.cluster_model import Shape
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import GlobalOrder
from apt_ds.data.tokenized import Row, TokenizedSet
from apt_ds.models import pretrained
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.models.loading import Base, first_line
from apt_ds.runtime import collectives
from apt_ds.training.run_data import Data

# besides `LLAMAS`: hidden size, feed-forward size, layers, heads, vocabulary
MADE_UP = {
    "wide": (1024, 2816, 8, 16, 32000),
    "tiny": (64, 128, 2, 4, 512),
}
SIZES = (*LLAMAS, *MADE_UP)
PREFIX = "random:"
ROWS = 256


def random_config(name: str, flag: str = "--random_weights") -> PretrainedConfig:
    """The configuration of one of `SIZES`, or of a config.json.

    Args:
        name: one of `SIZES`, a file, or the folder of a config.json. `NAME:N` has N layers.
        flag: the option that an error names.

    Raises:
        UserError: the name is unknown, or the file is not a configuration of a model.
    """
    known, _, some = name.partition(":")
    if known in SIZES and (not some or (some.isdecimal() and int(some) > 0)):
        if known in LLAMAS:
            return llama_config(known, **({"num_hidden_layers": int(some)} if some else {}))
        hidden, inner, layers, heads, words = MADE_UP[known]
        layers = int(some or layers)
        return LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            vocab_size=words,
            max_position_embeddings=4096,
        )
    if not os.path.exists(name):
        raise UserError(
            f"{flag} {name!r}: give one of {', '.join(SIZES)}, with :N for N of its layers, "
            "or the path of a config.json"
        )
    try:
        return pretrained.read_config(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{flag} {name!r}: not a configuration of a model ({first_line(error)})") from None


def random_base(name: str) -> Base:
    """A base model without weights to read. Raises UserError."""
    config = random_config(name)
    inner = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")
    return Base(f"{PREFIX}{name}", config, tokenizer, anatomy_of(config), random=True)


def one_layer(base: Base) -> Base:
    """A base of one of `SIZES` with one layer, since layers of drawn weights are alike. Any other base unchanged."""
    known = base.source.removeprefix(PREFIX).partition(":")[0]
    return random_base(f"{known}:1") if base.random and known in SIZES else base


def random_data(run: RunConfig, base: Base, last_step: int) -> Data:
    """Rows of `max_seq_length` random tokens, all trained, in an endless order."""
    generator = torch.Generator().manual_seed(run.optim.seed)
    ids = torch.randint(2, base.config.vocab_size, (ROWS, run.data.max_seq_length), generator=generator).tolist()
    rows: tuple[Row, ...] = tuple({"input_ids": row, "labels": row} for row in ids)
    tokenized = TokenizedSet.of(rows)
    batch = run.optim.global_batch(collectives.world_size())
    return Data(tokenized, tokenized, [], GlobalOrder(ROWS, batch, run.optim.seed), last_step, {})


def shape_of(base: Base, anatomy: Anatomy, run: RunConfig) -> Shape:
    """Sizes of a model after a cut to `anatomy`, with the run's adapters at their initial rank."""
    sizes, hidden = anatomy.sizes, anatomy.sizes.hidden
    heads = [(site, n) for site, n in zip(anatomy.sites, sizes.counts, strict=True) if site.kind == "head"]
    words = base.config.vocab_size * hidden
    adapters = sum(
        run.adapter.rank * sum(widths(anatomy, path)) for name in run.targets for path in anatomy.targets[name]
    )
    taps = sum(site.unit * n for site, n in zip(anatomy.sites, sizes.counts, strict=True))
    return Shape(
        blocks=anatomy.num_parameters(sizes),
        head=words,
        embeddings=0 if base.config.tie_word_embeddings else words,
        adapters=adapters,
        attention=sum(site.unit * n for site, n in heads),
        taps=taps + hidden * len(anatomy.writers),
        gathers=base.config.num_hidden_layers + 2,  # a layer at once, the embeddings and the LM head
    )


def widths(anatomy: Anatomy, path: str) -> tuple[int, int]:
    """Rows and columns of a projection that has blocks on both sides."""
    slot = next(slot for slot in anatomy.slots if slot.path == path)
    counts = {site: span.stop - span.start for site, span in block_slices(anatomy.sizes)}
    assert slot.rows is not None and slot.columns is not None
    return counts[slot.rows.site] * slot.rows.unit, counts[slot.columns.site] * slot.columns.unit
