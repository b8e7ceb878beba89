"""One page, in one file, about evaluations of several models: `python -m corm_jax.report`."""
