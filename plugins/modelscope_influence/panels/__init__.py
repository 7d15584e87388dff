"""Panels of the terminal app. Beside `modelscope_app.api` they alone of this plugin may import textual, and nothing imports them."""
