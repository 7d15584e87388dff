"""One module per analysis: what it does, in the order it happens."""
