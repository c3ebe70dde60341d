"""Training (paper, sections 4 and 5): augmentation, the update rule, one step, and the run around it."""
