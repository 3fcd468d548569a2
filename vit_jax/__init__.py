"""Vision Transformers in JAX/Flax.

Importing this package loads neither JAX nor Flax: its parts load when first used.
"""

__version__ = "0.1.0"
