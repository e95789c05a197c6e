"""Whether a tokenizer is the model's, and whether a length leaves room for text."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from apt_ds.config.errors import UserError


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, needed: tuple[str, ...] = ()) -> None:
    """A tokenizer must make only ids that the model embeds, and frame text as this kind of model has learnt it.

    needed: the special tokens without which the model's input cannot be made. Other models pad with their end token.

    Raises:
        UserError: it does not. The message says what is wrong.
    """
    name = tokenizer.name_or_path or "the model"
    advice = "Give the tokenizer that belongs to the model"
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise UserError(
            f"the tokenizer of {name} has ids up to {largest}, the model embeds only {config.vocab_size}. {advice}"
        )
    check_ids(config)
    for token in needed:
        if getattr(tokenizer, token) is None:
            raise UserError(f"the tokenizer of {name} has no {token}, which {config.model_type} needs. {advice}")
    # positions may be counted, and a decoder started, by the padding token of the configuration
    if needed and config.pad_token_id not in (None, tokenizer.pad_token_id):
        pads = f"pads with id {tokenizer.pad_token_id}, the model with {config.pad_token_id}"
        raise UserError(f"the tokenizer of {name} {pads}. {advice}")
    if "cls_token" in needed:
        framed = tokenizer("")["input_ids"]
        if framed[:1] != [tokenizer.cls_token_id] or framed[-1] != tokenizer.sep_token_id:
            raise UserError(
                f"the tokenizer of {name} does not put text between {tokenizer.cls_token} and "
                f"{tokenizer.sep_token}, which {config.model_type} needs. {advice}"
            )


def check_ids(config: PretrainedConfig) -> None:
    """UserError where a special token of the configuration is none that the model embeds. -1 means none."""
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        value = getattr(config, name, None)
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int) and not -1 <= number < config.vocab_size:
                raise UserError(
                    f"{name} {number} of the model's config.json is not among its {config.vocab_size} embeddings. "
                    "Correct config.json, or add the embedding to the model"
                )


def check_room(tokenizer: PreTrainedTokenizerBase, pair: bool, max_length: int) -> None:
    """UserError where `max_length` tokens hold nothing but what the tokenizer frames one text or a pair with."""
    framing = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length < framing + 1 + pair:
        raise UserError(f"a length of {max_length} tokens leaves no room beside {framing} special ones. Raise it")


def check_lengths(config: PretrainedConfig, longest: int, block: int) -> None:
    """UserError where a language model has fewer positions than an example or a block of text has tokens.

    Args:
        config: the configuration of the model.
        longest: tokens of the longest example.
        block: tokens of a block that perplexity is taken on. 0: none.
    """
    room = getattr(config, "max_position_embeddings", None)
    if room is None:
        return
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # under other kinds of scaling, max_position_embeddings is the scaled number already
    if rope.get("rope_type") in ("linear", "dynamic"):
        room = int(room * rope.get("factor", 1))
    if longest > room:
        raise UserError(
            f"an example has {longest} tokens, more than the model's {room} positions. "
            f"Give --max_seq_length {room} or less"
        )
    if block > room:
        raise UserError(f"--perplexity_length {block} is more than the model's {room} positions. Give {room} or less")


def token_columns(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The columns of a row that the tokenizer makes."""
    return [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
