"""OLMo 2 whose layers keep different numbers of heads and neurons. Needs transformers and what it requires.

`apt_layer_sizes.py` beside this file says what the configuration adds.
"""

from collections.abc import Iterable
from typing import Any

from transformers import AutoModel, Olmo2Config, Olmo2ForCausalLM, Olmo2Model, Olmo2PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

from .apt_emptied_sublayers import Bias  # noqa: F401  # transformers 4 copies only the files that this one names
from .apt_layer_sizes import LayerSizes, checked_config, resize_layers


def resize_all(layers: Iterable[Any], config: Any) -> None:
    """Resize linear layers, and the norms of queries and keys, which run over all heads of a layer."""
    layers = list(layers)
    resize_layers(layers, config)
    for layer in layers:
        attention = layer.self_attn
        for norm, projection in (("q_norm", attention.q_proj), ("k_norm", attention.k_proj)):
            stock = getattr(attention, norm)
            setattr(attention, norm, type(stock)(projection.out_features, stock.variance_epsilon))


@checked_config  # without it, the check of the stock configuration would stay in force
class AptOlmo2Config(LayerSizes, Olmo2Config):
    """Olmo2Config plus the sizes of each layer. The stock fields are the largest."""

    model_type = "apt_olmo2"
    head_dim: int | None = None
    layer_key_value_heads: list[int] | None = None
    layer_intermediate_sizes: list[int] | None = None


class AptOlmo2Model(Olmo2Model):
    """The stock base model with layers of their own sizes."""

    config_class = AptOlmo2Config

    def __init__(self, config: AptOlmo2Config) -> None:
        super().__init__(config)
        resize_all(self.layers, config)
        self.post_init()


AutoModel.register(AptOlmo2Config, AptOlmo2Model, exist_ok=True)  # stock classes with another head make their base so


class AptOlmo2ForCausalLM(Olmo2ForCausalLM):
    """The stock language model with layers of their own sizes."""

    config_class = AptOlmo2Config

    def __init__(self, config: AptOlmo2Config) -> None:
        super().__init__(config)
        resize_all(self.model.layers, config)
        self.post_init()


class AptOlmo2ForSequenceClassification(GenericForSequenceClassification, Olmo2PreTrainedModel):
    """The stock classifier, which transformers 4 lacks. Its base has layers of their own sizes."""

    config_class = AptOlmo2Config
