"""The update rule that all contestants of train_step.py share."""

RATE, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4  # so small a rate hardly changes the weights, and so not the times
