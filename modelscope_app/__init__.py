"""ModelScope App: open a safetensors checkpoint and run analyses on it."""

__version__ = "0.1.0"
