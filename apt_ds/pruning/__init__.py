"""Decides which blocks are removed and which ranks grow, and carries it out."""
