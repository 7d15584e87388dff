"""The run folder: what a job leaves behind, and the truth about it.

    job.json      what was asked                     events.jsonl  what happened
    status.json   how it stands                      log.txt       what the analysis and its libraries printed
    lock          held by the executor               stages/       results and saved states of named stages
    tables/*.parquet   artifacts/*.safetensors|json  views.json    facts.json
    queue.json    while the service has it

A folder opens on any machine, without a GPU and without the plugin that made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_app.api import BadInput, View, view_from_json
from modelscope_app.api.views import VIEWS
from modelscope_app.runs.atomic import finite, replacing, write_json
from modelscope_app.runs.events import read_events
from modelscope_app.runs.job import Job, read_job
from modelscope_app.runs.queue_record import FILE_NAME as QUEUE_FILE
from modelscope_app.runs.queue_record import QueueRecord
from modelscope_app.runs.reading import check_fields, json_value
from modelscope_app.runs.status import Status, read_status

if TYPE_CHECKING:
    import polars
    import torch

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


class FolderInUse(BadInput):
    """A new run cannot have a folder that holds files."""


class RunFolder:
    """A run on disk. Implements `api.FinishedRun`, and the writing that an executor does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @classmethod
    def create(cls, folder: Path, job: Job, queued: QueueRecord | None = None) -> RunFolder:
        """A new run in `folder`, which is absent or empty; with `queued` it is one for the service. Raises FolderInUse where it
        holds files, BadInput where it cannot be made.

        job.json, by which runs are found, is written last; what cannot be made whole is taken away again.
        """
        run = cls(folder)
        run.job = job
        made: list[Path] = []
        try:
            _make_empty(run.folder, made)
            for name in ("stages", "tables", "artifacts"):
                (run.folder / name).mkdir()
                made.append(run.folder / name)
            records = {QUEUE_FILE: asdict(queued)} if queued is not None else {}
            for name, value in {**records, "status.json": Status(state="queued").to_json(), "job.json": job.to_json()}.items():
                write_json(run.folder / name, value)
                made.append(run.folder / name)
        except BaseException as error:
            for path in reversed(made):
                with suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
            if isinstance(error, FileExistsError):  # another process makes its run there at this moment
                raise _in_use(folder) from None
            if isinstance(error, NotADirectoryError):
                raise BadInput(f"{folder}: a file stands where the run folder should be; choose another --out") from None
            if isinstance(error, OSError):
                raise BadInput(f"{folder}: cannot be made a run folder ({error.strerror}); choose another --out") from None
            raise
        return run

    @classmethod
    def open(cls, folder: Path) -> RunFolder:
        """An existing run. Raises BadInput when `folder` is not one."""
        run = cls(folder)
        _ = run.job
        return run

    @cached_property
    def job(self) -> Job:
        """What was asked."""
        return read_job(self.folder / "job.json")

    @property
    def id(self) -> str:
        """The run's id."""
        return self.job.id

    @property
    def analysis(self) -> str:
        """The analysis' id."""
        return self.job.analysis

    @property
    def checkpoints(self) -> Sequence[str]:
        """Paths of what it was given."""
        return tuple(checkpoint.path for checkpoint in self.job.checkpoints)

    @property
    def params(self) -> Mapping[str, Any]:
        """What it was asked."""
        return self.job.params

    def read_status(self) -> Status:
        """How it stands now."""
        return read_status(self.folder)

    @property
    def status(self) -> str:
        """Its state, one word."""
        return self.read_status().state

    @property
    def error(self) -> str | None:
        """The sentence of a run that failed, was cancelled or was lost."""
        return self.read_status().error

    @property
    def facts(self) -> Mapping[str, Any]:
        """Headline facts. Raises BadInput where facts.json holds anything else."""
        facts = self._json_file("facts.json", {})
        if not isinstance(facts, dict):
            raise BadInput(f"{self.folder / 'facts.json'}: holds no facts (a JSON object)")
        return facts

    @property
    def views(self) -> Sequence[View]:
        """Pictures of the results; kinds a newer version brought are left out. Raises BadInput where views.json is damaged."""
        found = []
        for value in self._stored_views():
            if str(value.get("kind")) not in VIEWS:
                continue
            try:
                view = view_from_json(value)
                check_fields(view)
            except (ValueError, TypeError) as error:
                raise BadInput(f"{self.folder / 'views.json'}: a view that cannot be drawn ({error})") from None
            found.append(view)
        return found

    @property
    def tables(self) -> Mapping[str, Path]:
        """Parquet files by table name."""
        return {path.stem: path for path in self._files("tables") if path.suffix == ".parquet"}

    @property
    def artifacts(self) -> Mapping[str, Path]:
        """Safetensors and json files by artifact name. Of two that share one, the json is NAME.json."""
        files = self._files("artifacts")
        tensors = {path.stem: path for path in files if path.suffix == ".safetensors"}
        documents = {path.name if path.stem in tensors else path.stem: path for path in files if path.suffix == ".json"}
        return dict(sorted({**tensors, **documents}.items()))

    def table(self, name: str) -> polars.DataFrame:
        """One table. Raises BadInput naming the tables there are, or the file that is damaged."""
        import polars
        from polars.exceptions import PanicException, PolarsError

        path = self._one_of(self.tables, name, "table")
        with _damage_said(path, PolarsError, PanicException, OSError):
            return polars.read_parquet(path)

    def check_tables(self) -> None:
        """Raise BadInput naming a table whose file is damaged, as far as its footer tells."""
        import polars
        from polars.exceptions import PanicException, PolarsError

        for path in self.tables.values():
            with _damage_said(path, PolarsError, PanicException, OSError):
                polars.scan_parquet(path).select(polars.len()).collect()

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """One safetensors artifact. Raises BadInput naming the artifacts there are, or the file that is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._one_of(self.artifacts, name, "artifact")
        with _damage_said(path, SafetensorError, OSError, ValueError, KeyError):
            tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors

    def json(self, name: str) -> Any:
        """One json artifact. Raises BadInput naming the artifacts there are, or the file that is damaged."""
        artifacts = self.artifacts
        return json_value(self._one_of(artifacts, f"{name}.json" if f"{name}.json" in artifacts else name, "artifact"))

    def summary(self) -> dict[str, Any]:
        """What `--json` prints of a run. Raises BadInput where a file it reads is damaged."""
        status = self.read_status()
        return {
            "run": self.id,
            "analysis": self.analysis,
            "status": status.state,
            "error": status.error,
            "exit_code": status.exit_code,
            **({"waiting_for": status.waiting_for} if status.waiting_for is not None else {}),
            "checkpoints": [
                {"path": checkpoint.path, "fingerprint": checkpoint.fingerprint, "series": checkpoint.series}
                for checkpoint in self.job.checkpoints
            ],
            "facts": dict(self.facts),
            "tables": {name: str(path) for name, path in self.tables.items()},
            "artifacts": {name: str(path) for name, path in self.artifacts.items()},
            "folder": str(self.folder),
        }

    @property
    def warnings(self) -> list[str]:
        """Sentences the user should have seen, each once, in their order."""
        said = (str(event.get("message", "")) for event in read_events(self.folder) if event["kind"] == "warning")
        return list(dict.fromkeys(said))

    def write_table(self, name: str, frame: polars.DataFrame) -> None:
        """Store a table, replacing one of that name."""
        with replacing(self.folder / "tables" / f"{_file_name(name)}.parquet") as part:
            frame.write_parquet(part)

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store a safetensors artifact, replacing one of that name."""
        from safetensors.torch import save_file

        with replacing(self.folder / "artifacts" / f"{_file_name(name)}.safetensors") as part:
            save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, part)

    def write_json(self, name: str, value: Any) -> None:
        """Store a json artifact, replacing one of that name."""
        write_json(self.folder / "artifacts" / f"{_file_name(name)}.json", value)

    def write_view(self, view: View) -> None:
        """Add a view, or replace the one of that name where it stands."""
        stored = self._stored_views()
        names = [value.get("name") for value in stored]
        if view.name in names:
            stored[names.index(view.name)] = view.to_json()
        else:
            stored.append(view.to_json())
        write_json(self.folder / "views.json", stored)

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Add facts, replacing those of the same names."""
        write_json(self.folder / "facts.json", {**self.facts, **finite(facts)})

    def _json_file(self, name: str, default: Any) -> Any:
        try:
            return json_value(self.folder / name)
        except FileNotFoundError:
            return default

    def _stored_views(self) -> list[dict[str, Any]]:
        views = self._json_file("views.json", [])
        if not isinstance(views, list) or not all(isinstance(view, dict) for view in views):
            raise BadInput(f"{self.folder / 'views.json'}: holds no views (a JSON list of objects)")
        return views

    def _files(self, name: str) -> list[Path]:
        """Regular files of a folder in the run, by name; those being written are left out."""
        try:
            paths = sorted((self.folder / name).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise BadInput(f"{self.folder / name}: not readable ({error.strerror})") from None
        return [path for path in paths if not path.name.startswith(".") and path.is_file()]

    def _one_of(self, paths: Mapping[str, Path], name: str, noun: str) -> Path:
        if name not in paths:
            there = ", ".join(paths) or "none"
            raise BadInput(f"run {self.id} has no {noun} {name!r}; it has: {there}")
        return paths[name]


def _make_empty(folder: Path, made: list[Path]) -> None:
    """Make `folder`, and say so in `made`, unless it is there and empty. Raises FolderInUse where it holds anything."""
    try:
        folder.mkdir(parents=True)
        made.append(folder)
    except FileExistsError:
        if any(folder.iterdir()):
            raise _in_use(folder) from None


def _in_use(folder: Path) -> FolderInUse:
    return FolderInUse(f"{folder}: a run needs a new or empty folder, and this one holds files; choose another --out")


@contextmanager
def _damage_said(path: Path, *errors: type[BaseException]) -> Iterator[None]:
    """What a library raises for a damaged file, as a sentence that names it."""
    try:
        yield
    except errors as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadInput(f"{path}: damaged, or not what its name says ({why})") from None


def _file_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: tables and artifacts are named with lower-case letters, digits, dots, dashes and underscores")
    return name
