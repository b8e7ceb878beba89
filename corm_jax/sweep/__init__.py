"""Sweeps: many trainings of one grid, compared. `python -m corm_jax.sweep` runs one."""
