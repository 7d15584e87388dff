"""A run on the screen: its views, what was asked, its log, panels of plugins; and two runs side by side."""
