"""Sizes by layer for decoders with the modules of LLaMA. The modelling files beside it import it.

Needs torch and transformers only. It is copied beside the exported weights, as the modelling files are.
"""

import copy
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, TypeVar, cast

from huggingface_hub.dataclasses import strict
from torch import nn

from .apt_emptied_sublayers import Bias, EmptiedAttention, EmptiedFeedForward

C = TypeVar("C")


def checked_config(config_class: type[C]) -> type[C]:
    """Check the fields of a configuration class as its stock class does. Classes of transformers 4 check none."""
    return cast(type[C], strict(config_class)) if is_dataclass(config_class) else config_class


class LayerConfigs(list[Any]):
    """The configurations of all layers, by number."""

    def __getitem__(self, key: Any) -> Any:
        """The configuration of a layer, or those of a slice.

        Raises:
            ValueError: `key` is a kind of layer. Transformers then takes the configuration of the model.
        """
        if isinstance(key, str):
            raise ValueError(f"layers of the kind {key!r} have sizes of their own: give the number of a layer")
        return super().__getitem__(key)


class PerLayerConfig:
    """States sizes by layer as transformers does, in `per_layer_config`. Put it before the stock class."""

    def layer_sizes(self) -> list[dict[str, int]]:
        """The stock fields of each layer. Empty where the configuration has no sizes by layer."""
        return []

    @property
    def per_layer_config(self) -> Any:
        """One configuration per layer, as transformers asks for it. Caches get their sizes here."""
        layers = LayerConfigs()
        for sizes in self.layer_sizes():
            layers.append(copy.copy(self))
            for name, value in sizes.items():
                setattr(layers[-1], name, value)
        return layers or super().per_layer_config  # type: ignore[misc]

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        """Change nothing: lists of the subclass say the same, and a stock class reads the stock fields."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the sizes by layer once more as transformers writes them."""
        sizes = {str(number): layer for number, layer in enumerate(self.layer_sizes())}
        return super().to_dict() | ({"per_layer_config": sizes} if sizes else {})  # type: ignore[misc]


class LayerSizes(PerLayerConfig):
    """What a configuration with sizes by layer adds to a stock one. Put it before the stock class.

    The subclass declares two fields, `layer_key_value_heads` and `layer_intermediate_sizes`, with one entry per layer.
    The stock fields have the largest sizes.
    """

    def validate_architecture(self) -> None:
        """Accept every hidden size: `head_dim` is explicit, so the number of heads need not divide it."""

    def layer_sizes(self) -> list[dict[str, int]]:
        """The stock fields of each layer. Empty if the lists are."""
        config: Any = self
        queries = config.num_attention_heads // config.num_key_value_heads
        sizes = zip(config.layer_key_value_heads or [], config.layer_intermediate_sizes or [], strict=True)
        return [
            {"num_attention_heads": heads * queries, "num_key_value_heads": heads, "intermediate_size": neurons}
            for heads, neurons in sizes
        ]


def resize_layers(layers: Iterable[Any], config: Any) -> None:
    """Give each decoder layer linear layers of its own sizes, with a bias where the stock layer has one.

    A sublayer of size 0 only adds a bias.

    Args:
        layers: decoder layers with `self_attn` and `mlp`.
        config: the configuration, with `LayerSizes`.
    """
    for layer, sizes in zip(layers, config.layer_sizes(), strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        if sizes["num_key_value_heads"]:
            resize_attention(attention, sizes["num_attention_heads"], sizes["num_key_value_heads"])
        else:
            attention.o_proj = Bias.of_width(config.hidden_size)
            layer.self_attn = EmptiedAttention(attention)
        neurons = sizes["intermediate_size"]
        if neurons:
            resize(mlp, {"gate_proj": neurons, "up_proj": neurons}, {"down_proj": neurons})
        else:
            mlp.down_proj = Bias.of_width(config.hidden_size)
            layer.mlp = EmptiedFeedForward(mlp)


def resize_attention(attention: Any, queries: int, groups: int) -> None:
    """Replace the projections of an attention by ones for so many query heads and key/value heads."""
    q, kv = queries * attention.head_dim, groups * attention.head_dim
    resize(attention, {"q_proj": q, "k_proj": kv, "v_proj": kv}, {"o_proj": q})


def resize(module: Any, outputs: dict[str, int], inputs: dict[str, int]) -> None:
    """Replace linear layers of a module.

    Args:
        module: an attention or a feed-forward sublayer.
        outputs: new output sizes, by the name of the layer.
        inputs: new input sizes, by the name of the layer.
    """
    for name in (*outputs, *inputs):
        stock = getattr(module, name)
        sizes = inputs.get(name, stock.in_features), outputs.get(name, stock.out_features)
        setattr(module, name, nn.Linear(*sizes, bias=stock.bias is not None))
