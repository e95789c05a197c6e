"""RoBERTa: BERT under another name, with another head and positions that follow the padding token's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from transformers import PretrainedConfig

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION
from apt_ds.models.architectures import bert
from apt_ds.models.export import modeling_apt_bert

HEADS = {CLASSIFICATION: ("classifier.dense", "classifier.out_proj"), ANSWERS: ("qa_outputs",)}


def position_offset(config: PretrainedConfig) -> int:
    """The first token has the position after the padding token's id."""
    return config.pad_token_id + 1


ARCHITECTURE = replace(
    bert.ARCHITECTURE,
    model_type="roberta",
    stock_classes={CLASSIFICATION: "RobertaForSequenceClassification", ANSWERS: "RobertaForQuestionAnswering"},
    blocks=partial(bert.bert_blocks, name="roberta", task_heads=HEADS),
    export=partial(bert.bert_export, adaptive=modeling_apt_bert.AptRobertaConfig),
    task_heads=HEADS,
    title="RoBERTa",
    position_offset=position_offset,
)
