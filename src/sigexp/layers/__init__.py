"""Layers that torch.nn lacks."""
