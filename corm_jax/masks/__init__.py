"""Mask records: where the core and the spurious features of images are."""
