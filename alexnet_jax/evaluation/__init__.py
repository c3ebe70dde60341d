"""Evaluation (paper, section 6): errors, views, ensembles, predictions."""
