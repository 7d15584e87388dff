"""What an overview says, as lines with lines inside: facts, sizes by module, config, template, files, members of a series.

An entry makes those inside it when it is opened; where that reads files it says so, and is then done in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api import MscopeError
from modelscope_app.checkpoints.in_words import facts_of, module_lines, size_text, steps_text
from modelscope_app.rendering.marks import BLOCKS
from modelscope_app.rendering.wording import count_text
from modelscope_app.tui.checkpoint.fitted_tree import Line
from modelscope_app.tui.checkpoint.opening import Opened

if TYPE_CHECKING:
    from modelscope_app.checkpoints import OpenCheckpoint
    from modelscope_app.checkpoints.overview import Overview

LABEL_CELLS = 17
_ICON_CELLS = 2
_INDENT = " " * _ICON_CELLS
_BAR_CELLS = 5
_MODULE_CELLS = 38
_MOST_KEY_CELLS = 34
_MOST_INSIDE = 300
"""Lines inside one entry; what is left out is counted and can be read as text."""
_TEMPLATE_LINES = 12
_OWN_SECTIONS = ("config", "metadata", "tokenizer", "not part of it", "series", "fingerprint")
"""Labels of facts that have a section to open instead."""


@dataclass(frozen=True)
class Entry:
    """One line, and what pressing enter or `y` on it does."""

    line: Line
    whole: str = ""
    """What `y` copies and what enter shows where the line has no room for it; untrusted."""
    inside: Callable[[], Sequence[Entry]] | None = None
    """Entries inside, made when it is opened. Raises MscopeError or OSError."""
    reads_files: bool = False
    is_open: bool = False
    checkpoint: str | None = None
    """Path of the checkpoint that enter opens."""
    is_fingerprint: bool = False


def overview_entries(opened: Opened) -> list[Entry]:
    """The lines of a checkpoint's overview page, or of a series'."""
    if opened.overview is None or opened.checkpoint is None:
        return _series_entries(opened)
    return _checkpoint_entries(opened.checkpoint, opened.overview)


def fingerprint_entry(value: str) -> Entry:
    """The line of the fingerprint: what it is, or how to get it."""
    return Entry(Line(f"{_INDENT}fingerprint", value, LABEL_CELLS), value, is_fingerprint=True)


def _checkpoint_entries(checkpoint: OpenCheckpoint, facts: Overview) -> list[Entry]:
    entries = [_fact(label, value) for label, value in facts_of(facts) if label not in _OWN_SECTIONS]
    entries.append(fingerprint_entry("not computed; 1 and then f computes it"))
    entries.append(Entry(_section("module sizes", "parameters and their share"), inside=lambda: _module_entries(facts), is_open=True))
    if checkpoint.config is not None:
        config = checkpoint.config
        highlights = ", ".join(f"{key} {json.dumps(value)}" for key, value in facts.config.items())
        entries.append(Entry(_section("config", highlights), _json_text(config), lambda: _json_entries(config)))
    else:
        entries.append(_fact("config", "none: there is no config.json"))
    if facts.tokenizer_files:
        entries.append(
            Entry(
                _section("tokenizer", ", ".join(facts.tokenizer_files)),
                "\n".join(facts.tokenizer_files),
                lambda: [_inner(name) for name in facts.tokenizer_files],
            )
        )
    else:
        entries.append(_fact("tokenizer", "none"))
    if facts.has_chat_template:
        template = _section("chat template", "open it to read it; it is never run here")
        entries.append(Entry(template, inside=lambda: _template_entries(checkpoint), reads_files=True))
    elif facts.tokenizer_files:
        entries.append(_fact("chat template", "none"))
    if facts.metadata:
        written = ", ".join(f"{key}: {value}" for key, value in list(facts.metadata.items())[:6])
        entries.append(Entry(_section("metadata", written), _json_text(facts.metadata), lambda: _json_entries(facts.metadata)))
    files = f"{count_text(len(facts.shards), 'shard')}, {size_text(sum(shard.bytes for shard in facts.shards))} on disk"
    entries.append(Entry(_section("files", files), inside=lambda: _shard_entries(facts)))
    if facts.other_files:
        entries.append(Entry(_section("not part of it", ", ".join(facts.other_files)), inside=lambda: _limited(facts.other_files)))
    if facts.series is not None:
        place, steps = facts.series, steps_text(facts.series.steps)
        said = f"step {place.step} of {steps}" if place.step is not None else f"steps {steps} in this folder"
        entries.append(Entry(_section("series", said), place.path, lambda: _member_entries(Path(place.path), place.step), reads_files=True))
    return entries


def _series_entries(opened: Opened) -> list[Entry]:
    members = opened.members
    broken = sum(1 for member in members if member.error is not None)
    entries = [
        _fact("series", f"{count_text(len(members), 'checkpoint')} of one training run"),
        _fact("steps", steps_text([member.step for member in members])),
    ]
    if broken:
        entries.append(_fact("cannot be opened", f"{broken} of {len(members)}; the lines below say why"))
    elif not opened.differences:
        entries.append(_fact("shapes", "all members have the same tensors and shapes"))
    name_cells = min(24, max(len(member.path.name) for member in members))
    digits = max(len(f"{member.parameters:,}") for member in members)
    lines = []
    for member in members:
        counted = f"{member.parameters:>{digits},} in {count_text(member.tensors, 'tensor')}, {size_text(member.bytes)}"
        about = f"! {member.error}" if member.error else f"{member.path.name:<{name_cells}}  {counted}"
        line = Line(f"step {member.step}", about, LABEL_CELLS - _ICON_CELLS)
        lines.append(Entry(line, member.error or str(member.path), checkpoint=None if member.error else str(member.path)))
    entries.append(Entry(_section("members", "enter opens one"), inside=lambda: lines, is_open=True))
    if opened.differences:
        differs = _section("differences", count_text(len(opened.differences), "difference"))
        entries.append(Entry(differs, "\n".join(opened.differences), lambda: _limited(opened.differences), is_open=True))
    return entries


def _module_entries(facts: Overview) -> list[Entry]:
    entries = []
    digits = len(f"{facts.parameters:,}")
    for label, module in module_lines(facts.by_module):
        share = module.parameters / facts.parameters if facts.parameters else 0.0
        whole, eighths = divmod(round(share * _BAR_CELLS * 8), 8)
        bar = BLOCKS.right[8] * whole + (BLOCKS.right[eighths] if eighths else "")
        about = f"{module.parameters:>{digits},} {100 * share:5.1f}% {bar}"
        entries.append(Entry(Line(label, about, _MODULE_CELLS, strong=" x " in label and not label.startswith(" ")), label.strip()))
    return _at_most(entries, "\n".join(f"{entry.whole}: {entry.line.about.strip()}" for entry in entries))


def _template_entries(checkpoint: OpenCheckpoint) -> list[Entry]:
    from modelscope_app.checkpoints.chat_template import chat_templates

    entries = []
    for name, text in chat_templates(checkpoint):
        lines = text.split("\n")
        entries.append(Entry(Line(name, f"{count_text(len(lines), 'line')}, enter reads it all", strong=True), text))
        entries += [Entry(Line(line.expandtabs(4), faint=True), text) for line in lines[:_TEMPLATE_LINES]]
        if len(lines) > _TEMPLATE_LINES:
            entries.append(Entry(Line(f"… {count_text(len(lines) - _TEMPLATE_LINES, 'more line')}, enter reads it all"), text))
    return entries


def _member_entries(folder: Path, step: int | None) -> list[Entry]:
    from modelscope_app.checkpoints import open_series

    entries = []
    for member in open_series(folder).members:
        here = "this one" if member.step == step else "enter opens it"
        entries.append(Entry(Line(f"step {member.step}  {member.path.name}", here), str(member.path), checkpoint=str(member.path)))
    return _at_most(entries, "\n".join(entry.whole for entry in entries))


def _shard_entries(facts: Overview) -> list[Entry]:
    entries = [
        Entry(Line(shard.file, f"{count_text(shard.tensors, 'tensor')}  {size_text(shard.bytes)}"), shard.file) for shard in facts.shards
    ]
    return _at_most(entries, "\n".join(shard.file for shard in facts.shards))


def _json_entries(value: Mapping[str, Any] | Sequence[Any]) -> list[Entry]:
    items = list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))
    longest = max((len(str(key)) for key, _ in items[:_MOST_INSIDE]), default=0)
    cells = min(_MOST_KEY_CELLS, max(LABEL_CELLS - _ICON_CELLS, longest + 2 + _ICON_CELLS))
    entries = []
    for key, item in items[: _MOST_INSIDE + 1]:
        if isinstance(item, Mapping | list) and item:
            what = f"{count_text(len(item), 'entry', 'entries')}"
            entries.append(Entry(Line(str(key), what, cells - _ICON_CELLS), _json_text(item), partial(_json_entries, item)))
        else:
            text = item if isinstance(item, str) else json.dumps(item)
            entries.append(Entry(Line(str(key), text, cells), text))
    return _at_most(entries, _json_text(value), len(items))


def _limited(texts: Sequence[str]) -> list[Entry]:
    return _at_most([_inner(text) for text in texts[: _MOST_INSIDE + 1]], "\n".join(texts), len(texts))


def _at_most(entries: list[Entry], whole: str, count: int | None = None) -> list[Entry]:
    count = len(entries) if count is None else count
    if count <= _MOST_INSIDE:
        return entries
    return [*entries[:_MOST_INSIDE], Entry(Line(f"… {count - _MOST_INSIDE:,} more, enter reads all as text"), whole)]


def _inner(text: str) -> Entry:
    return Entry(Line(text), text)


def _fact(label: str, value: str) -> Entry:
    return Entry(Line(_INDENT + label, value, LABEL_CELLS), value)


def _section(name: str, about: str) -> Line:
    return Line(name, about, LABEL_CELLS - _ICON_CELLS)


def _json_text(value: object) -> str:
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, default=str)
    except (ValueError, RecursionError) as error:
        return f"cannot be written as JSON: {error}"


def read_inside(entry: Entry) -> tuple[list[Entry], str | None]:
    """Entries inside, or none and the sentence that says why."""
    try:
        return list(entry.inside()) if entry.inside is not None else [], None
    except MscopeError as error:
        return [], str(error)
    except OSError as error:
        return [], f"cannot be read: {error.strerror or error}"
