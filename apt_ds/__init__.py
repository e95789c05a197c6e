"""Adaptive pruning and tuning of LLaMA-like models under DeepSpeed."""

__version__ = "0.1.0"
