"""Speed of our models and of a peer's, measured in turns in one process."""
