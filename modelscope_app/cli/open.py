"""`mscope open [CHECKPOINT]`, which `mscope [CHECKPOINT]` is short for."""

from __future__ import annotations

import click


@click.command(name="open", short_help="Open the terminal app.")
@click.argument("checkpoint", required=False, type=click.Path())
def command(checkpoint: str | None) -> None:
    """Open the terminal app: on CHECKPOINT (a folder or file of safetensors, a series, a run folder, or hf:org/name), or its library."""
    from modelscope_app.cli.app import open_app

    open_app(checkpoint)
