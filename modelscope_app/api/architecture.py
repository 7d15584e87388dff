"""What plugins contribute so that more checkpoints can be built and more data files read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model family the host cannot build by itself."""

    model_type: str
    """`model_type` in config.json."""
    build: str
    """`package.module:function`, called as `build(config: dict)`: returns a torch.nn.Module with empty weights whose
    state-dict names are the checkpoint's tensor names."""
    adapter: str | None = None
    """`package.module:function`, called as `adapter(module)`: returns an object with the attributes of
    `modelscope_app.api.FamilyAdapter`. Without it only the sites a layer list gives are offered."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A data format the host cannot read by itself."""

    suffix: str
    """File name ending with its dot, as `.arrow`."""
    read: str
    """`package.module:function`, called as `read(path)`: returns a polars DataFrame of rows."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A Textual widget for results that no view can show."""

    name: str
    title: str
    widget: str
    """`package.module:WidgetClass`, imported by the terminal app alone; called with a finished run."""
    analyses: tuple[str, ...] = ()
    """Analyses of this plugin whose runs it can show, by name or as `<plugin>.<name>`; empty means all."""
