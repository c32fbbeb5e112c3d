"""Estimating the quality of a new tokenizer from a study, or refusing to."""
