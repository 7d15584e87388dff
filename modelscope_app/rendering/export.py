"""A run as files for others: an HTML report, one JSON file, or its tables as CSV or parquet.

| format  | what is written                          | where, without `out`             |
|---------|------------------------------------------|----------------------------------|
| html    | one file that opens offline              | `report.html` in the run folder  |
| json    | one file: facts, views, tables with rows | `report.json` in the run folder  |
| csv     | one file per table                       | folder `csv` in the run folder   |
| parquet | one file per table, copied byte by byte  | nowhere: the run folder has them |

`out` is the file for html and json (or an existing folder to put it in), the folder for csv and parquet. Files of exactly the
names written are replaced, each whole or not at all; no other file is touched, and none that belongs to the run.

JSON and parquet hold what the tables hold. CSV cannot hold everything, so it is for spreadsheets and people:

- lists, structs and bytes become JSON text;
- text that a spreadsheet would take for a formula (it begins with `=`, `+`, `-`, `@`, a tab or a carriage return, goes on after
  that, and is no number) gets an apostrophe in front, as does text with apostrophes before such a beginning; taking one
  apostrophe off again gives back every text exactly. Names in a checkpoint are a stranger's, and formulas can fetch and send.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from modelscope_app.api import BadInput, FinishedRun
from modelscope_app.rendering.records import json_value, run_json
from modelscope_app.runs.atomic import replacing

if TYPE_CHECKING:
    import polars

ExportFormat = Literal["html", "json", "csv", "parquet"]
EXPORT_FORMATS: tuple[str, ...] = get_args(ExportFormat)

_RUN_PARTS = frozenset(
    {
        "job.json",
        "status.json",
        "queue.json",
        "lock",
        "events.jsonl",
        "log.txt",
        "stages",
        "tables",
        "artifacts",
        "views.json",
        "facts.json",
    }
)
"""What lies in a run folder and is never written by an export."""
_FORMULA = re.compile(r"'*[=+\-@\t\r].", re.DOTALL)
_NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def export_run(run: FinishedRun, format: ExportFormat, out: Path | None = None) -> list[Path]:
    """Write a run in a format and return the files, absolute. Raises BadInput where they cannot be written or there are none."""
    if format not in EXPORT_FORMATS:
        raise BadInput(f"{format!r} is no export format; choose one of {', '.join(EXPORT_FORMATS)}")
    try:
        if format in ("html", "json"):
            return [_one_file(run, format, out)]
        if not run.tables:
            raise BadInput(f"run {run.id} has no tables to export as {format}; html and json hold its facts")
        return _one_file_per_table(run, format, out)
    except OSError as error:
        raise BadInput(f"{error.filename or out}: cannot be written ({error.strerror}); choose another --out") from None


def formula_guarded(text: str) -> str:
    """`text` as a CSV cell that no spreadsheet runs.

    >>> [formula_guarded(text) for text in ("=1+1", "-0.5", "-", "@import", "model.norm")]
    ["'=1+1", '-0.5', '-', "'@import", 'model.norm']
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _one_file(run: FinishedRun, format: str, out: Path | None) -> Path:
    path = (out or run.folder / f"report.{format}").absolute()
    if path.is_dir():
        path = path / f"{run.id}.{format}"
    refuse_files_of_the_run(run, [path])
    if format == "html":
        from modelscope_app.rendering.html import write_report

        return write_report(run, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(run_json(run), allow_nan=False, indent=1) + "\n", encoding="utf-8")
    return path


def _one_file_per_table(run: FinishedRun, format: str, out: Path | None) -> list[Path]:
    if out is None and format == "parquet":
        return list(run.tables.values())
    folder = (out or run.folder / format).absolute()
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file, and {format} is exported into a folder; choose another --out")
    paths = {name: folder / f"{name}.{format}" for name in run.tables}
    refuse_files_of_the_run(run, paths.values())
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        with replacing(path) as part:
            if format == "parquet":
                shutil.copyfile(run.tables[name], part)
            else:
                csv_frame(run.table(name)).write_csv(part)
    return list(paths.values())


def csv_frame(frame: polars.DataFrame) -> polars.DataFrame:
    """A table as CSV can hold it: nested values and bytes as JSON text, formulas guarded."""
    import polars

    columns = []
    for series in frame:
        if series.dtype.is_nested() or series.dtype == polars.Binary:
            series = polars.Series(series.name, [_json_text(value) for value in series.to_list()], dtype=polars.String)
        if series.dtype in (polars.String, polars.Categorical, polars.Enum):
            texts = series.cast(polars.String).to_list()
            series = polars.Series(series.name, [None if text is None else formula_guarded(text) for text in texts], dtype=polars.String)
        columns.append(series)
    names = {series.name: formula_guarded(series.name) for series in columns}
    return polars.DataFrame(columns).rename(names)


def _json_text(value: object) -> str | None:
    return None if value is None else json.dumps(json_value(value), allow_nan=False)


def refuse_files_of_the_run(run: FinishedRun, paths: Iterable[Path], choose: str = "another --out") -> None:
    """Raise BadInput if one of the paths is, or would lie among, what the run consists of."""
    folder = run.folder.resolve()
    for path in paths:
        place = path.resolve()
        if place.is_relative_to(folder) and place.relative_to(folder).parts[0] in _RUN_PARTS:
            raise BadInput(f"{path}: belongs to the run itself; choose {choose}")
