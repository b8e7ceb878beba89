"""Images joined with their masks, as batches."""
