"""Generators that are trained side by side and compared, and ablations."""
