"""What each analysis does, in the order it happens."""
