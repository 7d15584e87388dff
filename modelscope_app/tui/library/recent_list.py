"""Recent checkpoints, and the samples that come with the project: what each is, where it lies, when it was opened."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from modelscope_app.api import neutralised
from modelscope_app.rendering.wording import age_text
from modelscope_app.tui.library.places import glanced
from modelscope_app.tui.library.recent import RecentCheckpoint, forget, recent
from modelscope_app.tui.messages import CheckpointOpened, Selected
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.selections import Selection

if TYPE_CHECKING:
    from modelscope_app.checkpoints.glance import Glance

_LONGEST_NAME = 60
_LONGEST_LINE = 300
_NOTHING = "No recent checkpoints. Press 2 to browse folders, or start with `mscope CHECKPOINT`."


class _Listed(Message):
    """The store was read."""

    def __init__(self, opened: list[RecentCheckpoint], samples: list[str]) -> None:
        self.opened, self.samples = opened, samples
        super().__init__()


class _Glanced(Message):
    """What some of the paths are."""

    def __init__(self, glances: Mapping[str, Glance | None]) -> None:
        self.glances = glances
        super().__init__()


class RecentList(Vertical):
    """Enter opens one, `x` takes it off the list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("x", "forget", "Take off the list", show=False)]
    DEFAULT_CSS = """
    RecentList {
        & > #recent-state { height: auto; padding: 0 1; color: $text-muted; margin-bottom: 1; }
        & > OptionList {
            height: 1fr; border: none; padding: 0; background: transparent; background-tint: transparent;
            text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1;
            & > .option-list--option { padding: 0 1; }
        }
        & > OptionList:focus { border: none; }
    }
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, id: str | None = None) -> None:
        """`clock` gives Unix seconds, for ages."""
        super().__init__(id=id)
        self._clock = clock
        self._recent: list[RecentCheckpoint] = []
        self._samples: list[str] = []
        self._glances: dict[str, Glance | None] = {}

    def compose(self) -> ComposeResult:
        """What to do where there is nothing, and the list."""
        yield Static("Looking for recent checkpoints ...", id="recent-state")
        yield OptionList(id="recent", markup=False)

    def on_mount(self) -> None:
        """Read the store and then what the paths are."""
        self._read()

    def action_forget(self) -> None:
        """Take the checkpoint off the list; nothing is deleted."""
        path = self._path
        if path is None or path in self._samples:
            return
        forget(path)
        at = self._list.highlighted
        self._recent = [one for one in self._recent if one.path != path]
        self._fill()
        if self._list.option_count:
            self._list.highlighted = min(at or 0, self._list.option_count - 1)

    def copied(self) -> Copied | None:
        """The path."""
        return Copied(self._path, "the checkpoint's path") if self._path is not None else None

    def selection(self) -> Selection | None:
        """The checkpoint."""
        path = self._path
        return Selection("checkpoint", path, neutralised(_name(path), _LONGEST_NAME), path) if path is not None else None

    def headless_command(self) -> str | None:
        """What prints its overview."""
        return f"mscope inspect {shlex.quote(self._path)}" if self._path is not None else None

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "Recent checkpoints",
            "Checkpoints and series opened here, newest first, and the samples that come with the project. gone means that nothing is at "
            "the path any more. Enter opens one, x takes it off this list and deletes nothing.",
        )

    @property
    def _list(self) -> OptionList:
        return self.query_one(OptionList)

    @property
    def _path(self) -> str | None:
        option = self._list.highlighted_option if self.is_mounted else None
        return option.id if option is not None else None

    @work(thread=True, exclusive=True, exit_on_error=False, group="recent")
    def _read(self) -> None:
        from modelscope_app.checkpoints.samples import sample_checkpoints

        opened = recent()
        samples: list[str] = []
        with suppress(OSError):  # there is enough to do without them
            samples = [str(path) for path in sample_checkpoints() if str(path) not in {one.path for one in opened}]
        self.post_message(_Listed(opened, samples))
        for path in [*(one.path for one in opened), *samples]:
            self.post_message(_Glanced({path: glanced(path)}))

    @on(_Listed)
    def _was_listed(self, event: _Listed) -> None:
        event.stop()
        self._recent, self._samples = event.opened, event.samples
        self._fill()

    @on(_Glanced)
    def _were_glanced(self, event: _Glanced) -> None:
        event.stop()
        self._glances.update(event.glances)
        for path in event.glances:
            if any(option.id == path for option in self._list.options):
                self._list.replace_option_prompt(path, self._prompt(path))

    def _fill(self) -> None:
        state = self.query_one("#recent-state", Static)
        state.display = not self._recent
        state.update(_NOTHING + ("\nOr open one of the samples below; `mscope demo` runs analyses on them." if self._samples else ""))
        paths = [*(one.path for one in self._recent), *self._samples]
        self._list.display = bool(paths)
        self._list.set_options(Option(self._prompt(path), id=path) for path in paths)
        if paths:
            self._list.highlighted = 0

    def _prompt(self, path: str) -> Content:
        glance = self._glances.get(path)
        opened = next((one.opened for one in self._recent if one.path == path), None)
        when = "sample" if opened is None else f"{age_text(max(0.0, self._clock() - opened))} ago"
        kind = glance.kind if glance is not None else ""
        said = "reading ..." if path not in self._glances else "no checkpoint there any more" if glance is None else glance.words
        mark = {"gone": "! ", "damaged": "! "}.get(kind, "  ")
        return Content.assemble(
            (mark + neutralised(_name(path), _LONGEST_NAME), "bold" if kind != "gone" else "dim"),
            f"  {neutralised(said, _LONGEST_LINE)}",
            (f"\n    {when}, {neutralised(path, _LONGEST_LINE)}", "dim"),
        )

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        self.post_message(Selected(self.selection()))

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        path = event.option.id or ""
        glance = self._glances.get(path)
        if glance is not None and glance.kind == "gone":
            self.app.notify(f"{path} is gone. x takes it off the list.", severity="warning", markup=False)
        else:
            self.post_message(CheckpointOpened(path))


def _name(path: str) -> str:
    """Last component; of a series, also the one above."""
    parts = path.rstrip("/").split("/")
    return "/".join(parts[-2:]) if path.startswith("hf:") or parts[-1] in ("series", "checkpoints", "output") else parts[-1] or path
