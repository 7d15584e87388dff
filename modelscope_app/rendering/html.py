"""A run as one HTML file that explains itself: readable offline, on paper, in light and dark, without a script.

Pictures are SVG inside the page, their colours taken from the page's own variables, so they follow its theme. The file asks
nothing of any network: its content security policy allows styles of its own and `data:` pictures and nothing else. Every piece
of text is escaped by the template engine, not by the code that passes it. The same run gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from modelscope_app.api import BadInput, FactsView, FinishedRun, View
from modelscope_app.rendering.columns import columns_of
from modelscope_app.rendering.drawings import FactsDrawing, TableDrawing, TokenStripDrawing, drawing, facts_drawing
from modelscope_app.rendering.palette import INKS
from modelscope_app.rendering.pictures import drawing_figure, picture_bytes
from modelscope_app.rendering.wording import bytes_text, count_text, label_text, number_text, value_text
from modelscope_app.runs.atomic import replacing

MOST_ROWS = 200
"""Rows of a table in the report."""
MOST_COLUMNS = 24
MOST_TOKENS = 500
MOST_TEXTS = 10
LONGEST_CELL = 120
_INK_NAMES = {ink.light: ink.name for ink in INKS}


@dataclass(frozen=True, slots=True)
class Rows:
    """A capped table, worded."""

    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    cells: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a strip: its text, its number, and the strength and side of its background."""

    text: str
    number: str
    side: str
    strength: int
    """Percent."""


@dataclass(frozen=True, slots=True)
class Section:
    """One view of the report: whichever of these it has."""

    title: str
    caption: str = ""
    notes: tuple[str, ...] = ()
    picture: Markup | None = None
    facts: tuple[tuple[str, str], ...] = ()
    strips: tuple[tuple[str, str, tuple[Token, ...]], ...] = ()
    rows: Rows | None = None
    open: bool = False
    """Whether the rows are the view itself, not the data behind it."""


def write_report(run: FinishedRun, path: Path) -> Path:
    """Write the report of a run, whole or not at all; a file of that name is replaced. Returns the path.

    A view that does not fit its table is a sentence in its place. Raises BadInput where the file cannot be written.
    """
    page = report_html(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise BadInput(f"{path}: the report cannot be written ({error.strerror}); choose another --out") from None
    return path


def report_html(run: FinishedRun) -> str:
    """The report as text."""
    sections = [_section_or_sentence(run, view) for view in run.views]
    if run.facts and not any(isinstance(view, FactsView) for view in run.views):
        sections.insert(0, Section("Facts", facts=facts_drawing(run.facts).facts))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        run={
            "id": label_text(run.id),
            "analysis": label_text(run.analysis),
            "status": label_text(run.status),
            "error": label_text(run.error or ""),
        },
        about=_about(run),
        sections=sections,
        tables=[(label_text(name), *_table_shape(path), _place(run, path)) for name, path in run.tables.items()],
        artifacts=[(label_text(name), bytes_text(path.stat().st_size), _place(run, path)) for name, path in run.artifacts.items()],
        inks=INKS,
    )


def _section_or_sentence(run: FinishedRun, view: View) -> Section:
    try:
        return _section(run, view)
    except BadInput as error:
        return Section(_line(view.title), _line(view.caption), (f"This view cannot be drawn: {error}.",))


def _section(run: FinishedRun, view: View) -> Section:
    drawn = drawing(run, view)
    title, caption = _line(view.title), _line(view.caption)
    if isinstance(drawn, FactsDrawing):
        return Section(title, caption, drawn.notes, facts=drawn.facts)
    if isinstance(drawn, TableDrawing):
        return Section(title, caption, drawn.notes, rows=_rows(run, view, drawn.frame), open=True)
    rows = _rows(run, view, run.table(getattr(view, "table", ""))[list(columns_of(view))])
    if not rows.cells:
        return Section(title, caption, drawn.notes)
    if isinstance(drawn, TokenStripDrawing):
        return Section(title, caption, (*drawn.notes, *_strip_notes(drawn)), strips=tuple(_strips(drawn)), rows=rows)
    return Section(title, caption, drawn.notes, picture=_inline(picture_bytes(drawing_figure(drawn, None), transparent=True)), rows=rows)


def _rows(run: FinishedRun, view: View, frame: Any) -> Rows:
    shown = frame.head(MOST_ROWS)[:, :MOST_COLUMNS]
    cells = [[value_text(value, name, LONGEST_CELL) for value in shown[name].to_list()] for name in shown.columns]
    left_out = []
    if frame.height > MOST_ROWS:
        left_out.append(f"the first {MOST_ROWS} of {count_text(frame.height, 'row')}")
    if frame.width > MOST_COLUMNS:
        left_out.append(f"the first {MOST_COLUMNS} of {count_text(frame.width, 'column')}")
    place = _place(run, run.tables[getattr(view, "table", "")])
    note = f"Shown are {' and '.join(left_out)}; all of them are in {place}." if left_out else ""
    heads = tuple(label_text(name, LONGEST_CELL) for name in shown.columns)
    numeric = tuple(shown[name].dtype.is_numeric() for name in shown.columns)
    return Rows(heads, numeric, tuple(zip(*cells, strict=True)), note)


def _strips(drawn: TokenStripDrawing) -> list[tuple[str, str, tuple[Token, ...]]]:
    """Per score and text: what the score is, the text's name, its tokens."""
    import numpy

    strips = []
    for at, label in enumerate(drawn.score_labels):
        known = numpy.concatenate([text.scores[at] for text in drawn.texts] or [numpy.empty(0)])
        known = known[~numpy.isnan(known)]
        reach = float(numpy.abs(known).max(initial=0))
        for text in drawn.texts[:MOST_TEXTS]:
            tokens = tuple(
                Token(
                    token if token.strip() else token.replace(" ", "␣"),
                    "?" if score != score else number_text(score, 2),
                    "unknown" if score != score else "below" if score < 0 else "above",
                    0 if score != score or not reach else round(75 * abs(score) / reach),
                )
                for token, score in zip(text.tokens[:MOST_TOKENS], text.scores[at].tolist(), strict=False)
            )
            strips.append((f"{label}, at most {number_text(reach)} in size" if known.size else label, text.name, tokens))
    return strips


def _strip_notes(drawn: TokenStripDrawing) -> list[str]:
    notes = []
    if len(drawn.texts) > MOST_TEXTS:
        notes.append(f"The first {MOST_TEXTS} of {count_text(len(drawn.texts), 'text')}.")
    if any(len(text.tokens) > MOST_TOKENS for text in drawn.texts[:MOST_TEXTS]):
        notes.append(f"The first {MOST_TOKENS} tokens of each text.")
    return notes


def _inline(svg: bytes) -> Markup:
    """An SVG file as an element of the page: no prolog, no rule for the whole page, colours from the page's variables.

    matplotlib escapes the text it writes, so what comes in is markup by right.
    """
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"\n\s*", "\n", text)
    return Markup(re.sub(r'style="[^"<>]*"', lambda style: _with_variables(style[0]), text))


def _with_variables(style: str) -> str:
    return re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda rule: f"{rule[1]}: {_variable(rule[2])}", style)


def _variable(colour: str) -> str:
    return f"var(--{_INK_NAMES[colour]})" if colour in _INK_NAMES else colour


def _about(run: FinishedRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """What job.json says, in groups of name and value. A run without one, or with one nobody can read, has no groups."""
    try:
        job = json.loads((run.folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(job, Mapping):
        return []
    groups = [
        ("Checkpoints", [(_field(item, "path"), _field(item, "fingerprint")) for item in _list(job.get("checkpoints"))]),
        ("Params", _pairs(job.get("params"))),
        ("Data", [(_field(item, "path"), f"sha256 {_field(item, 'sha256')}") for item in _list(job.get("inputs"))]),
        (
            "Executed",
            [(name, _json_text(job[name])) for name in ("command", "created", "device", "dtype", "seed") if name in job],
        ),
        (
            "Versions",
            [*_pairs({"analysis": job.get("analysis_version")}), *_pairs(_plugin(job.get("plugin"))), *_pairs(job.get("versions"))],
        ),
    ]
    return [(title, pairs) for title, pairs in groups if pairs]


def _plugin(plugin: Any) -> Mapping[str, Any]:
    return {str(plugin.get("distribution", "plugin")): plugin.get("version")} if isinstance(plugin, Mapping) else {}


def _pairs(value: Any) -> list[tuple[str, str]]:
    return [(label_text(str(name)), _json_text(item)) for name, item in value.items()] if isinstance(value, Mapping) else []


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _field(value: Any, name: str) -> str:
    return _json_text(value.get(name)) if isinstance(value, Mapping) else ""


def _json_text(value: Any) -> str:
    """A setting as it was given: digits as they are, unlike a result."""
    return _line(value if isinstance(value, str) else "not given" if value is None else json.dumps(value, ensure_ascii=False))


def _line(text: str) -> str:
    return label_text(text, longest=2000)


def _table_shape(path: Path) -> tuple[str, str]:
    import polars

    scan = polars.scan_parquet(path)
    return f"{scan.select(polars.len()).collect().item():,}", f"{len(scan.collect_schema()):,}"


def _place(run: FinishedRun, path: Path) -> str:
    return label_text(str(path.relative_to(run.folder) if path.is_relative_to(run.folder) else path))
