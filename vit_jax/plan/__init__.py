"""Predicts the cost of a training step from the compiled program, without a machine to run it."""
