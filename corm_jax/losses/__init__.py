"""Training objectives: named terms, their weights, and presets of them."""
