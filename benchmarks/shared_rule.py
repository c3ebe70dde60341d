"""The update rule that all contestants of train_step.py share."""

RATE, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4  # so small that the weights, and with them the times, hardly change
