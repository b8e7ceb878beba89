"""From an encoder to mask records: features of classes, and where they are active on images."""
