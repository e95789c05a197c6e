"""The model card and licence files of a written model."""
