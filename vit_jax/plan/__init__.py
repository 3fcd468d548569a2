"""What a training step will cost, from the real compiler, before there is a machine to run it."""
