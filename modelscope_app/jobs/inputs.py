"""What a job reads besides its checkpoints: files, other checkpoints and earlier runs named in its params.

Each is recorded with a fingerprint of its content when the job is submitted, so that resuming on something else is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from modelscope_app.api import BadInput
from modelscope_app.runs.index import find_run
from modelscope_app.runs.job import JobInput

if TYPE_CHECKING:
    from modelscope_app.checkpoints import OpenCheckpoint, OpenSeries

Params = TypeVar("Params", bound=BaseModel)

_READ = ("data-file", "file", "checkpoint", "run")


def with_runs_resolved(params: Params) -> Params:
    """`params` with every run named by its folder: `latest` or the beginning of an id may name another one later."""
    return params.model_copy(update={name: _each(value, _run_folder) for name, kind, value in _named(params) if kind == "run" and value})


def job_inputs(params: BaseModel) -> tuple[JobInput, ...]:
    """Everything the params name, with its fingerprint. Paths are absolute. Raises BadInput for what cannot be read."""
    from modelscope_app.plugin_host import params_json

    stored = params_json(params)
    found = []
    for name, kind, _ in _named(params):
        value = stored[name]
        for path in value if isinstance(value, list) else [value]:
            if path:
                found.append(JobInput(name, kind, path, input_fingerprint(kind, path)))
    return tuple(found)


def input_fingerprint(kind: str, path: str) -> str:
    """Of a file its sha256, of a checkpoint its fingerprint, of a run a hash over its results. Raises BadInput."""
    if kind == "checkpoint":
        from modelscope_app.checkpoints import open_checkpoint

        return open_checkpoint(path).fingerprint
    if kind == "run":
        folder = find_run(path).folder
        results = [folder / "facts.json", *sorted((folder / "tables").glob("[!.]*")), *sorted((folder / "artifacts").glob("[!.]*"))]
        parts = [[file.name, _sha256(file)] for file in results if file.is_file()]
        return "run:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return _sha256(Path(path))


def content_fingerprint(named: OpenCheckpoint | OpenSeries) -> str:
    """Of a checkpoint, its fingerprint; of a series, a hash over its steps and its members' fingerprints."""
    from modelscope_app.checkpoints import OpenSeries

    if not isinstance(named, OpenSeries):
        return named.fingerprint
    members = [[step, member.fingerprint] for step, member in zip(named.steps, named.checkpoints, strict=True)]
    return "series:" + hashlib.sha256(json.dumps(members).encode()).hexdigest()


def _named(params: BaseModel) -> Iterator[tuple[str, str, Any]]:
    """Name, kind and value of each param that stands for something to read."""
    from modelscope_app.plugin_host import param_fields

    for field in param_fields(type(params)):
        if field.meaning is not None and field.meaning.kind in _READ:
            yield field.name, field.meaning.kind, getattr(params, field.name)


def _each(value: Any, change: Any) -> Any:
    return [change(item) for item in value] if isinstance(value, list | tuple) else change(value)


def _run_folder(reference: str) -> str:
    return str(find_run(reference).folder)


def _sha256(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe must not make us wait
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BadInput(f"{path}: cannot be read (it is no regular file)")
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL character, or half of a surrogate pair, in the path
        raise BadInput(f"{str(path)!r}: cannot be the path of a file ({error})") from None
