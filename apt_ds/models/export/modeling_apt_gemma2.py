"""Gemma 2 whose layers keep different numbers of heads and neurons. Needs transformers and what it requires.

`apt_layer_sizes.py` beside this file says what the configuration adds.
"""

from transformers import AutoModel, Gemma2Config, Gemma2ForCausalLM, Gemma2ForSequenceClassification, Gemma2Model

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_layer_sizes import LayerSizes, checked_config, resize_layers


@checked_config  # without it, the check of the stock configuration would stay in force
class AptGemma2Config(LayerSizes, Gemma2Config):
    """Gemma2Config plus the sizes of each layer. The stock fields are the largest."""

    model_type = "apt_gemma2"
    layer_key_value_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


class AptGemma2Model(Gemma2Model):
    """The stock base model with layers of their own sizes."""

    config_class = AptGemma2Config

    def __init__(self, config: AptGemma2Config) -> None:
        super().__init__(config)
        resize_layers(self.layers, config)
        self.post_init()


AutoModel.register(AptGemma2Config, AptGemma2Model, exist_ok=True)  # stock classes with another head make their base so


class AptGemma2ForCausalLM(Gemma2ForCausalLM):
    """The stock language model with layers of their own sizes."""

    config_class = AptGemma2Config

    def __init__(self, config: AptGemma2Config) -> None:
        super().__init__(config)
        resize_layers(self.model.layers, config)
        self.post_init()


class AptGemma2ForSequenceClassification(Gemma2ForSequenceClassification):
    """The stock classifier. Its base has layers of their own sizes."""

    config_class = AptGemma2Config
