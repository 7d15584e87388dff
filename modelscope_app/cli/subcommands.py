"""The subcommands of `mscope`, and which words are none but something to open."""

from __future__ import annotations

import os

SUBCOMMANDS = {
    "open": ("modelscope_app.cli.open", "Open the terminal app; `mscope CHECKPOINT` does the same."),
    "inspect": ("modelscope_app.cli.inspect", "What is in a checkpoint: tensors, sizes, architecture, problems."),
    "run": ("modelscope_app.cli.run", "Run an analysis on a checkpoint."),
    "runs": ("modelscope_app.cli.runs", "Look at, follow, cancel, resume, export and remove runs."),
    "service": ("modelscope_app.cli.service", "Start, stop and look at the service that queues jobs."),
    "analyses": ("modelscope_app.cli.analyses", "What can be run, and its options."),
    "plugins": ("modelscope_app.cli.plugins", "List, check and create plugins."),
    "cache": ("modelscope_app.cli.cache", "Show or clear what can be computed again."),
    "completion": ("modelscope_app.cli.completion", "Tab completion for bash, zsh and fish."),
    "demo": ("modelscope_app.cli.demo", "Run the weight analyses on a sample checkpoint and write a report."),
}
"""Module and one-line help by name; each module has a click command named `command`."""


def is_to_open(word: str) -> bool:
    """Whether a word in the place of a subcommand is meant as a checkpoint or a run folder. Subcommands win; `./runs` is a path."""
    if word in SUBCOMMANDS or word.startswith("-"):
        return False
    return "/" in word or word.startswith("hf:") or os.path.lexists(word)
