"""Scores a model, during training or finished."""
