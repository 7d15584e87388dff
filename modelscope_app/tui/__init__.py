"""The terminal app: `mscope` and `mscope CHECKPOINT`. Only this package and panels of plugins import textual."""
