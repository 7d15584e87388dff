"""Small screens over the others: help, export, a question, what a selection can be used for."""
