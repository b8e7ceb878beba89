"""Core Risk Minimization in JAX/Flax: measure and lower the reliance on spurious features."""

__version__ = "0.1.0"
