"""The model card and licence files of a written model."""

from apt_ds.training.model_card.card import write_card

__all__ = ["write_card"]
