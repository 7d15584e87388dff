"""Forms made from the params of an analysis: `screen.FormScreen`, with its fields, checks, presets, pickers and estimate."""
