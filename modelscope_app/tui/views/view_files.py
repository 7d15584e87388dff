"""One view as a file: the table it draws as csv, parquet or json, its picture as svg, a report of this view alone as html.

Imported when `e` is pressed; what costs is imported when a file is written, in the thread that writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api import BadInput, FinishedRun, TableView, View, neutralised
from modelscope_app.tui.on_screen import Exports

if TYPE_CHECKING:
    import polars

TABLE_FORMATS = frozenset({"csv", "parquet"})
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NAME = 60


def view_exports(
    run: FinishedRun, view: View, formats: Sequence[str], frame: Callable[[], polars.DataFrame] | None = None
) -> Exports | None:
    """What can be written of a view; None where nothing can. `frame` gives the rows, where these are not the whole table of the view;
    it is called in the thread that writes."""
    table = getattr(view, "table", None)
    offered = tuple(one for one in formats if table is not None or one not in TABLE_FORMATS)
    if not offered:
        return None
    name = _NOT_IN_A_NAME.sub("-", f"{run.id}-{view.name}")[-_LONGEST_NAME:].strip("-.") or "view"
    what = f"view {neutralised(view.title or view.name, _LONGEST_NAME)}"
    return Exports(what, offered, _working_folder(), name, partial(_write, run, view, frame))


def _working_folder() -> Path:
    """Where the app was started, or home where that folder is gone."""
    try:
        return Path.cwd()
    except OSError:
        return Path.home()


@dataclass(frozen=True)
class _OneView:
    """A run as if this view were its only one, for the report."""

    run: FinishedRun
    views: tuple[View, ...]
    rows: polars.DataFrame | None = None
    """Of the view's table, where they are not all of it."""

    def table(self, name: str) -> polars.DataFrame:
        return self.run.table(name) if self.rows is None else self.rows

    @property
    def tables(self) -> Mapping[str, Path]:
        wanted = {getattr(view, "table", None) for view in self.views}
        return {name: path for name, path in self.run.tables.items() if name in wanted}

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.run.facts if any(view.kind == "facts" for view in self.views) else {}

    @property
    def artifacts(self) -> Mapping[str, Path]:
        return {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)


def _write(run: FinishedRun, view: View, frame: Callable[[], polars.DataFrame] | None, file_format: str, path: Path) -> Path:
    """Write the file, whole or not at all; one of that name is replaced. Raises BadInput where it cannot be written."""
    from modelscope_app.rendering.export import csv_frame, refuse_files_of_the_run
    from modelscope_app.runs.atomic import replacing

    path = path.expanduser().absolute()
    refuse_files_of_the_run(run, [path], "another place")
    rows = frame() if frame is not None else None
    if rows is not None and isinstance(view, TableView):  # they are chosen and in order already
        view = replace(view, columns=(), sort_by=None)
    shown = _OneView(run, (view,), rows)
    if file_format == "html":
        from modelscope_app.rendering.html import write_report

        return write_report(shown, path)
    try:
        content = None if file_format in TABLE_FORMATS else _content(shown, view, file_format)
        rows = shown.table(getattr(view, "table", "")) if content is None else None
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            if content is not None:
                part.write_bytes(content)
            elif rows is not None and file_format == "csv":
                csv_frame(rows).write_csv(part)
            elif rows is not None:
                rows.write_parquet(part)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def _content(run: FinishedRun, view: View, file_format: str) -> bytes:
    if file_format == "json":
        from modelscope_app.rendering.records import view_json

        return (json.dumps(view_json(run, view), allow_nan=False, indent=1) + "\n").encode()
    if file_format == "svg":
        from modelscope_app.rendering.pictures import picture_bytes, view_figure

        return picture_bytes(view_figure(run, view), "svg")
    raise BadInput(f"{file_format!r} is no format a view can be written as; choose csv, parquet, json, html or svg")
