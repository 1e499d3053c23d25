"""Evaluation: metrics that keep apart what the paper mixes."""
