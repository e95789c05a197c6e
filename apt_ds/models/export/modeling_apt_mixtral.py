"""Mixtral whose layers keep different numbers of heads, experts and neurons. Needs transformers and what it requires.

The configuration adds three lists, one entry per layer: `layer_key_value_heads`, `layer_experts` and
`layer_intermediate_sizes`, the neurons of each expert.
"""

from typing import Any

from transformers import AutoModel, MixtralConfig, MixtralForCausalLM, MixtralForSequenceClassification, MixtralModel
from transformers.models.mixtral import modeling_mixtral as stock

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_expert_sizes import ExpertSizes, resize_mixtures
from .apt_layer_sizes import checked_config


@checked_config
class AptMixtralConfig(ExpertSizes, MixtralConfig):
    """MixtralConfig plus the sizes of each layer. The scalar fields are the largest."""

    model_type = "apt_mixtral"
    layer_key_value_heads: list[int] | None = None
    layer_experts: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


def resize(layers: Any, config: AptMixtralConfig) -> None:
    """Replace the attention and the experts of each layer by ones of its own sizes."""
    resize_mixtures(layers, config, config.neurons_field, stock.MixtralTopKRouter, stock.MixtralExperts)


class AptMixtralModel(MixtralModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptMixtralConfig

    def __init__(self, config: AptMixtralConfig) -> None:
        super().__init__(config)
        resize(self.layers, config)
        self.post_init()


AutoModel.register(
    AptMixtralConfig, AptMixtralModel, exist_ok=True
)  # stock classes with another head make their base so


class AptMixtralForCausalLM(MixtralForCausalLM):
    """The stock language model with layers of their own sizes."""

    config_class = AptMixtralConfig

    def __init__(self, config: AptMixtralConfig) -> None:
        super().__init__(config)
        resize(self.model.layers, config)
        self.post_init()


class AptMixtralForSequenceClassification(MixtralForSequenceClassification):
    """The stock classifier. Its base has layers of their own sizes."""

    config_class = AptMixtralConfig
