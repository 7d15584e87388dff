"""Finding runs: those in the data folder, and those that `--out` put elsewhere.

`runs.txt` in the state folder lists absolute run folders, one a line, appended under a lock. It is an index, not the truth: a
line whose folder is gone is passed over, and losing the file loses only the way to runs outside the data folder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modelscope_app.api import BadInput
from modelscope_app.locations import absolute_path, data_dir, state_dir
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.reading import file_bytes

_LONGEST_REFERENCE = 80


def runs_dir() -> Path:
    """Where runs go without `--out`."""
    return data_dir() / "runs"


def register(run: RunFolder) -> bool:
    """Make a run outside the data folder findable. False where the index cannot be written: the run is there, only not listed."""
    line = os.fsencode(run.folder)
    if run.folder.parent == runs_dir():
        return True
    if b"\n" in line:
        return False
    try:
        state_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(_index_path(), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return os.write(descriptor, line + b"\n") == len(line) + 1
        finally:
            os.close(descriptor)
    except (OSError, BadInput):
        return False


class UnreadableRun(NamedTuple):
    """A run folder whose job.json cannot be read."""

    folder: Path
    error: str
    """The sentence; it names the file."""


class FoundRuns(NamedTuple):
    """What looking for runs found."""

    runs: list[RunFolder]
    """Newest first."""
    unreadable: list[UnreadableRun]
    """By folder."""
    problems: list[str]
    """Sentences on places that could not be looked into."""


def found_runs() -> FoundRuns:
    """Every run there is a way to. Reads their job.json and nothing else."""
    runs: list[RunFolder] = []
    unreadable: list[UnreadableRun] = []
    problems: list[str] = []
    for folder in _candidates(problems):
        try:
            runs.append(RunFolder.open(folder))
        except BadInput as error:
            unreadable.append(UnreadableRun(folder, str(error)))
    return FoundRuns(sorted(runs, key=lambda run: (run.job.created_at, run.id), reverse=True), sorted(unreadable), problems)


def all_runs() -> list[RunFolder]:
    """Every run that can be found and read, newest first."""
    return found_runs().runs


def folders_with(file_name: str) -> list[Path]:
    """Folders of runs that hold a file of this name; none of them is read."""
    return [folder for folder in _candidates([]) if (folder / file_name).is_file()]


def find_run(reference: str) -> RunFolder:
    """A run by folder, by id, or by the unique beginning of an id; `latest` is the newest. Raises BadInput."""
    folder = absolute_path(reference)
    if _holds_a_job(folder):
        return RunFolder.open(folder)
    if "/" in reference or os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name too long for the system
        raise BadInput(f"{_shortened(reference)!r}: not a run folder (it has no job.json)")
    direct = runs_dir() / reference
    if _holds_a_job(direct):
        return RunFolder.open(direct)
    runs = all_runs()
    if reference == "latest" and runs:
        return runs[0]
    matches = [run for run in runs if run.id == reference] or [run for run in runs if run.id.startswith(reference)]
    if not matches:
        raise BadInput(f"no run {_shortened(reference)!r}; `mscope runs list` shows those there are")
    if len(matches) > 1:
        raise BadInput(
            f"{reference!r} is the beginning of {len(matches)} run ids, among them {matches[0].id} and {matches[1].id}; write more of it"
        )
    return matches[0]


def _candidates(problems: list[str]) -> Iterator[Path]:
    """Folders that hold a job.json, each once; sentences on what could not be read are added to `problems`."""
    folders: list[Path] = []
    try:
        folders += runs_dir().iterdir()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        problems.append(f"{runs_dir()}: not readable ({error.strerror}), so its runs are not listed")
    try:
        folders += (Path(os.fsdecode(line)) for line in file_bytes(_index_path()).split(b"\n") if line)
    except FileNotFoundError:
        pass
    except BadInput as error:
        problems.append(f"{error}, so runs outside {runs_dir()} are not listed")
    yield from (folder for folder in dict.fromkeys(folders) if _holds_a_job(folder))


def _holds_a_job(folder: Path) -> bool:
    """Whether there is a job.json, readable or not."""
    try:
        (folder / "job.json").lstat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _shortened(reference: str) -> str:
    return reference if len(reference) <= _LONGEST_REFERENCE else f"{reference[: _LONGEST_REFERENCE - 1]}…"


def _index_path() -> Path:
    return state_dir() / "runs.txt"
