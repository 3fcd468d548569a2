"""Files of every format as lazy named tensors; nothing here knows a model."""
