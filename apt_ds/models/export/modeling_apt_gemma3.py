"""Gemma 3 (text) whose layers keep different numbers of heads and neurons. Needs transformers and what it requires.

`apt_layer_sizes.py` beside this file says what the configuration adds.
"""

from transformers import (
    AutoModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
)

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_layer_sizes import LayerSizes, checked_config, resize_layers


@checked_config  # without it, the check of the stock configuration would stay in force
class AptGemma3Config(LayerSizes, Gemma3TextConfig):
    """Gemma3TextConfig plus the sizes of each layer. The stock fields are the largest."""

    model_type = "apt_gemma3_text"
    layer_key_value_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


class AptGemma3Model(Gemma3TextModel):
    """The stock base model with layers of their own sizes."""

    config_class = AptGemma3Config

    def __init__(self, config: AptGemma3Config) -> None:
        super().__init__(config)
        resize_layers(self.layers, config)
        self.post_init()


AutoModel.register(AptGemma3Config, AptGemma3Model, exist_ok=True)  # stock classes with another head make their base so


class AptGemma3ForCausalLM(Gemma3ForCausalLM):
    """The stock language model with layers of their own sizes."""

    config_class = AptGemma3Config

    def __init__(self, config: AptGemma3Config) -> None:
        super().__init__(config)
        resize_layers(self.model.layers, config)
        self.post_init()


class AptGemma3ForSequenceClassification(Gemma3TextForSequenceClassification):
    """The stock classifier. Its base has layers of their own sizes."""

    config_class = AptGemma3Config
