"""One tensor: what its header says, and its statistics and histogram where a run has computed them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from textwrap import wrap
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.widgets import Static

from modelscope_app.api import neutralised
from modelscope_app.api.tensor_header import TensorHeader
from modelscope_app.checkpoints.in_words import size_text
from modelscope_app.rendering.wording import age_text, value_text
from modelscope_app.tui.checkpoint.opening import Opened
from modelscope_app.tui.checkpoint.statistics import ANALYSIS, Statistics, stored_statistics
from modelscope_app.tui.messages import AnalysisChosen, RunOpened
from modelscope_app.tui.on_screen import Copied, Explanation
from modelscope_app.tui.plain import plain
from modelscope_app.tui.selections import Selection
from modelscope_app.tui.thread_work import failure_told

_LONGEST_NAME = 600
_LONGEST_VALUE = 200
_LABEL_CELLS = 12
_NARROWEST_VALUE = 16
_STATISTIC_LABEL_CELLS = 10
_STATISTIC_CELLS = 23
"""Columns of one statistic with its label."""
_STATISTICS = {
    "min": "min",
    "max": "max",
    "mean": "mean",
    "std": "std",
    "norm": "norm",
    "rms": "rms",
    "abs_max": "abs max",
    "kurtosis": "kurtosis",
    "outliers": "outliers",
    "zeros": "zeros",
    "zero_rows": "zero rows",
    "distinct": "distinct",
    "nan": "NaN",
    "positive_inf": "+inf",
    "negative_inf": "-inf",
}
"""What a column of the run's table is called here."""


class _StatisticsRead(Message):
    """Run folders were looked through."""

    def __init__(self, found: Statistics | None, error: str | None) -> None:
        self.found, self.error = found, error
        super().__init__()


class TensorDetail(VerticalScroll):
    """Shows one tensor of what was opened."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "follow", "Statistics"),
        Binding("r", "compute", "Compute statistics", show=False),
    ]
    DEFAULT_CSS = """
    TensorDetail {
        padding: 0 1;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        & > Static { height: auto; margin-bottom: 1; }
        & > #tensor-name { text-style: bold; }
    }
    """

    def __init__(
        self,
        opened: Opened,
        header: TensorHeader,
        *,
        clock: Callable[[], float] = time.time,
        id: str | None = None,
    ) -> None:
        """`clock` gives Unix seconds, for the age of the run."""
        super().__init__(id=id)
        self._opened = opened
        self._header = header
        self._clock = clock
        self._found: Statistics | None = None
        self._looked = False
        self._error: str | None = None

    def compose(self) -> ComposeResult:
        """Name, facts, statistics, histogram."""
        yield Static(self._title_content(), id="tensor-name")
        yield Static(id="tensor-facts")
        yield Static("Looking for statistics ...", id="tensor-statistics")
        yield Static(id="tensor-histogram")

    def on_mount(self) -> None:
        """Look for statistics."""
        self.query_one("#tensor-histogram").display = False
        self.refresh_runs()

    def refresh_runs(self) -> None:
        """Look again: a run may have ended."""
        self._read_statistics()

    def action_follow(self) -> None:
        """Open the run the statistics are from; without one, the analysis that computes them."""
        if self._found is not None:
            self.post_message(RunOpened(self._found.run))
        elif self._looked:
            self.action_compute()

    def action_compute(self) -> None:
        """The form of the analysis that computes statistics."""
        self.post_message(AnalysisChosen(ANALYSIS, [self._opened.tensors_in]))

    def copied(self) -> Copied | None:
        """The name, whole."""
        return Copied(self._header.name, "the tensor's name")

    def selection(self) -> Selection | None:
        """The tensor."""
        return Selection("tensor", self._header.name, neutralised(self._header.name, 80), self._opened.tensors_in)

    def headless_command(self) -> str | None:
        """What computes the statistics shown, or those missing."""
        return f"mscope run {ANALYSIS} {shlex.quote(self._opened.tensors_in)}"

    def explanation(self) -> Explanation:
        """For `?`."""
        return Explanation(
            "A tensor",
            "What its header says: dtype, shape, where its bytes are. Statistics come from the newest finished run of weights.stats on "
            "this checkpoint; enter opens that run, or the form that computes them. They leave out NaN and infinities, which are counted. "
            "unknown stands for a number that was not computed or is not finite.",
        )

    def _title_content(self) -> Content:
        name = self._header.name
        left = len(name) - _LONGEST_NAME
        if left <= 0:
            return plain(name)
        return plain(name[:_LONGEST_NAME]) + Content.styled(f" … {left:,} more characters, y copies the whole name", "not bold dim")

    def _facts(self) -> Content:
        """Label and value a line; a value that is too long goes on below itself."""
        lines = []
        room = max(_NARROWEST_VALUE, self.scrollable_content_region.width - _LABEL_CELLS)
        for label, value in self._fact_lines():
            parts = wrap(neutralised(value, _LONGEST_VALUE), room) or [""]
            lines.append(Content.assemble((label.ljust(_LABEL_CELLS), "dim"), parts[0]))
            lines += [Content(" " * _LABEL_CELLS + part) for part in parts[1:]]
        return Content("\n").join(lines)

    def _fact_lines(self) -> Iterator[tuple[str, str]]:
        header = self._header
        yield "dtype", header.dtype
        yield "shape", " x ".join(f"{size:,}" for size in header.shape) or "scalar: a single number"
        yield "elements", f"{header.parameters:,}"
        yield "size", f"{size_text(header.bytes)}" + (f" ({header.bytes:,} bytes)" if header.bytes >= 1000 else "")
        yield "file", f"{header.shard}, bytes {header.begin:,} to {header.end:,}"
        module, _, _ = header.name.rpartition(".")
        yield "module", module or "none: its name has no dot"
        pattern, count = self._alike()
        if count > 1:
            yield "pattern", f"one of {count:,} like {pattern}"
        overview = self._opened.overview
        for tied in overview.tied if overview is not None else ():
            if tied.same_as == header.name:
                yield "tied", f"{tied.name} is this tensor, says {tied.said_by}"
        if self._opened.series is not None:
            yield "of", f"{self._opened.tensors_in}, the first member of the series"

    def _alike(self) -> tuple[str, int]:
        """The name with its numbers as `*`, and how many tensors have it."""
        own = self._header.name.split(".")
        numbered = [at for at, part in enumerate(own) if part.isdigit()]
        if not numbered:
            return self._header.name, 1
        pattern = ["*" if part.isdigit() else part for part in own]
        last, length = own[-1], len(own)
        count = 0
        for header in self._opened.headers:
            if header.name.endswith(last) or last.isdigit():
                parts = header.name.split(".")
                if len(parts) == length and all(b.isdigit() if a == "*" else a == b for a, b in zip(pattern, parts, strict=True)):
                    count += 1
        return ".".join(pattern), count

    @work(thread=True, exclusive=True, exit_on_error=False, group="statistics")
    def _read_statistics(self) -> None:
        opened = self._opened
        with failure_told(lambda sentence: self.post_message(_StatisticsRead(None, sentence)), "the statistics cannot be read"):
            found = stored_statistics(opened.checkpoint, opened.tensors_in, self._header.name)
            self.post_message(_StatisticsRead(found, None))

    @on(_StatisticsRead)
    def _statistics_read(self, event: _StatisticsRead) -> None:
        event.stop()
        self._found, self._error, self._looked = event.found, event.error, True
        self._draw()

    @on(Resize)
    def _resized(self) -> None:
        self.query_one("#tensor-facts", Static).update(self._facts())
        if self._looked:
            self._draw()

    def _draw(self) -> None:
        self.query_one("#tensor-statistics", Static).update(self._statistics())
        histogram = self.query_one("#tensor-histogram", Static)
        lines: list[str] = []
        if self._found is not None and self._found.bins:
            from modelscope_app.tui.checkpoint.histogram import histogram_lines

            lines = histogram_lines(self._found.bins, self.scrollable_content_region.width)
        histogram.display = bool(lines)
        histogram.update(Content("\n".join(lines)))

    def _statistics(self) -> Content:
        if self._error is not None:
            return plain(f"No statistics: {self._error}") + Content("\nPress r to compute them anew with weights.stats.")
        found = self._found
        if found is None:
            return Content.from_markup(
                "No statistics yet: nothing has read its values.\n"
                "[b]2[/b] and then [b]enter[/b] opens weights.stats, which computes them for all tensors."
            )
        ago = age_text(max(0.0, self._clock() - found.created.timestamp()))
        lines = [Content.assemble(("statistics", "bold"), (f" of {ago} ago; 2 and then enter opens the run", "dim"))]
        if found.doubt is not None:
            lines.append(Content.styled(f"! {found.doubt}", "$warning"))
        if not found.values:
            lines.append(Content("The run's table has no row for this tensor."))
        return Content("\n").join([*lines, *_table(found, self.scrollable_content_region.width)])


def _table(found: Statistics, width: int) -> Iterator[Content]:
    """Names and numbers, as many a line as there is room for; a note has a line of its own."""
    cells = [
        Content.assemble((said.ljust(_STATISTIC_LABEL_CELLS), "dim"), value_text(found.values[name], longest=_LONGEST_VALUE))
        for name, said in _STATISTICS.items()
        if name in found.values
    ]
    per_line = max(1, width // _STATISTIC_CELLS)
    for at in range(0, len(cells), per_line):
        yield Content("").join(cell.pad_right(max(0, _STATISTIC_CELLS - len(cell))) for cell in cells[at : at + per_line])
    if found.values.get("note") is not None:
        yield plain(f"note: {value_text(found.values['note'])}", _LONGEST_VALUE)
