"""Where masks come from: one module for each format that `masks import` reads."""
