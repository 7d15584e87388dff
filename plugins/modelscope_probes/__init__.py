"""Probes: would this model defect, and how far may one trust the answer."""
