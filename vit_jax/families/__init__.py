"""Families of models: one file a family, and the registry of all names. No JAX is imported here."""
