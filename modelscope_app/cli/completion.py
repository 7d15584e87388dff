"""`mscope completion SHELL`: the script a shell sources for tab completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Tab completion for bash, zsh and fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash:  eval "$(mscope completion bash)"      in ~/.bashrc
    zsh:   eval "$(mscope completion zsh)"       in ~/.zshrc
    fish:  mscope completion fish | source       in ~/.config/fish/config.fish
    """
    from modelscope_app.cli.main import mscope

    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(mscope, {}, "mscope", "_MSCOPE_COMPLETE").source())
