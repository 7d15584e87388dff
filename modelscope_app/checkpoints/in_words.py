"""What a checkpoint is, in words for people: the same in `mscope inspect` and in the terminal app.

Names come from files that anybody may have made; what comes back here is neutralised where it was cut, and whoever shows the
rest neutralises it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from modelscope_app.api.text import neutralised

if TYPE_CHECKING:
    from modelscope_app.checkpoints.module_tree import Module
    from modelscope_app.checkpoints.overview import Overview

_LONGEST_VALUE = 160


def facts_of(facts: Overview, fingerprint: str | None = None) -> Iterable[tuple[str, str]]:
    """Label and value, one line each, the most telling first; a label may come several times."""
    if facts.architectures or facts.model_type:
        kind = f" ({facts.model_type})" if facts.architectures and facts.model_type else facts.model_type or ""
        yield "architecture", ", ".join(facts.architectures) + kind
    else:
        yield "architecture", "unknown: no config.json says it"
    if facts.layers is not None:
        yield "layers", f"{facts.layers:,}"
    yield "parameters", f"{facts.parameters:,} in {_count(facts.tensors, 'tensor')}"
    files = f"{len(facts.shards):,} shards" if len(facts.shards) > 1 else facts.shards[0].file if facts.shards else "no file"
    yield "size", f"{size_text(facts.bytes)} in {files}"
    for dtype, row in facts.by_dtype.items():
        share = f", {_count(row.tensors, 'tensor')}, {size_text(row.bytes)}" if len(facts.by_dtype) > 1 else ""
        yield "dtype", f"{short(dtype)}{share}"
    for tied in facts.tied[:4]:
        yield "tied", f"{short(tied.name)} is {short(tied.same_as)}, says {tied.said_by}"
    if facts.tokenizer_files:
        template = "chat template" if facts.has_chat_template else "no chat template"
        yield "tokenizer", f"{', '.join(facts.tokenizer_files)}; {template}"
    else:
        yield "tokenizer", "none"
    if facts.config:
        yield "config", ", ".join(f"{key} {_plain(value)}" for key, value in facts.config.items())
    for key, value in list(facts.metadata.items())[:6]:
        yield "metadata", f"{short(key)}: {short(value)}"
    if len(facts.metadata) > 6:
        yield "metadata", f"{len(facts.metadata) - 6} more entries"
    if facts.other_files:
        yield "not part of it", ", ".join(map(short, facts.other_files[:6])) + (" ..." if len(facts.other_files) > 6 else "")
    if facts.series is not None:
        steps = steps_text(facts.series.steps)
        yield "series", f"step {facts.series.step} of {steps}" if facts.series.step is not None else f"steps {steps} in this folder"
    if fingerprint is not None:
        yield "fingerprint", fingerprint


def module_lines(modules: Sequence[Module]) -> Iterable[tuple[str, Module]]:
    """Label and numbers of each line: unrepeated modules that hold tensors themselves, and repeated ones with those inside below."""
    own = {module.path: module for module in modules}  # what is in no module below it
    for module in modules:
        if (above := own.get(module.path.rpartition(".")[0])) is not None:
            rest = [before - inside for before, inside in zip(above[2:], module[2:], strict=True)]
            own[above.path] = type(module)(above.path, above.times, *rest)
    folded: str | None = None
    for module in modules:
        if folded is not None and module.path.startswith(folded + "."):
            if own[module.path].tensors:
                inner = module.path.removeprefix(folded + ".")
                yield f"  {inner}" if "*" not in inner.split(".") else f"  {module.times:,} x {inner}", own[module.path]
            continue
        folded = None
        if module.path == "*" or module.path.endswith(".*"):
            folded = module.path
            yield f"{module.times:,} x {module.path}", module
        elif own[module.path].tensors:
            yield module.path, own[module.path]


def short(text: str) -> str:
    """Untrusted text on one line, neutralised, cut where it is very long."""
    return neutralised(text, longest=_LONGEST_VALUE)


def _plain(value: object) -> str:
    return short(str(value).lower() if isinstance(value, bool) else str(value))


def _count(number: int, noun: str) -> str:
    """A count with its noun.

    >>> _count(1, "tensor"), _count(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def steps_text(steps: Sequence[int]) -> str:
    """Steps on one line; of many the first and the last.

    >>> steps_text(range(0, 100, 10))
    '0, 10, 20 ... 90 (10 members)'
    """
    if len(steps) <= 8:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:3]))} ... {steps[-1]} ({len(steps)} members)"


def size_text(count: int) -> str:
    """Bytes for people, in powers of ten as disks and downloads count them.

    >>> size_text(269_030_016)
    '269.0 MB'
    """
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
