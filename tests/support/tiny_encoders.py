"""Tiny encoders of the families beside BERT: the class, the configuration and what is special about each."""

from __future__ import annotations

from typing import Any

from transformers import (
    DebertaV2Config,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
)

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION

SMALL = {
    "distilbert-classes": (DistilBertForSequenceClassification, DistilBertConfig, CLASSIFICATION),
    "distilbert-answers": (DistilBertForQuestionAnswering, DistilBertConfig, ANSWERS),
    "electra-classes": (ElectraForSequenceClassification, ElectraConfig, CLASSIFICATION),
    "electra-answers": (ElectraForQuestionAnswering, ElectraConfig, ANSWERS),
    "modernbert-classes": (ModernBertForSequenceClassification, ModernBertConfig, CLASSIFICATION),
    "modernbert-answers": (ModernBertForQuestionAnswering, ModernBertConfig, ANSWERS),
    "deberta-classes": (DebertaV2ForSequenceClassification, DebertaV2Config, CLASSIFICATION),
    "deberta-answers": (DebertaV2ForQuestionAnswering, DebertaV2Config, ANSWERS),
}
DISTILBERT = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0}
DISTILBERT |= {"qa_dropout": 0.0, "seq_classif_dropout": 0.0, "max_position_embeddings": 64}
BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT |= {"max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODERNBERT: dict[str, Any] = {key: value for key, value in BERT.items() if not key.endswith("_prob")}
# the second layer has a window of two tokens to each side, and positions of its own
MODERNBERT |= {"global_attn_every_n_layers": 2, "local_attention": 4, "global_rope_theta": 1000.0}
MODERNBERT |= dict.fromkeys(("bos_token_id", "cls_token_id"), 1) | dict.fromkeys(("eos_token_id", "sep_token_id"), 2)
BIASES = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)
DEBERTA: dict[str, Any] = BERT | {"relative_attention": True, "position_buckets": 4, "max_relative_positions": -1}
VERSION_3 = {"pos_att_type": "p2c|c2p", "share_att_key": True, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
VERSION_3 |= {"position_biased_input": False, "pooler_hidden_size": 32}
VERSION_2 = {"pos_att_type": ["c2p", "p2c"], "type_vocab_size": 2, "embedding_size": 12}
VALUES: dict[str, dict[str, Any]] = {
    "distilbert-classes": DISTILBERT,
    "distilbert-answers": DISTILBERT,
    # the small models of the family project their embeddings, the others do not
    "electra-classes": BERT | {"embedding_size": 12},
    "electra-answers": BERT | {"embedding_size": 32},
    "modernbert-classes": MODERNBERT | {"classifier_pooling": "mean"},
    "modernbert-answers": MODERNBERT | BIASES,
    "deberta-classes": DEBERTA | VERSION_3,
    "deberta-answers": DEBERTA | VERSION_2,
}
