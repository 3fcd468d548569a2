"""Name tables: what other libraries call the tensors of our models."""
