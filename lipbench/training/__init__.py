"""The trainer: stacks of trials, epochs, the discrepancy principle, choice of checkpoints."""
