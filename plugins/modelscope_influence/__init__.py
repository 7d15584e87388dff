"""Influence functions: which training examples made the model do this, and how far a score may be trusted."""
