"""Predicts and measures what runs cost, without changing them."""
