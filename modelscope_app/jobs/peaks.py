"""What earlier runs took of their device, so that the next estimate is a measured one.

A line of `peaks.jsonl` in the state folder for each run that was done in one go: a resumed one has done a part only. Losing the
file loses the learning and nothing else. An estimate looks at runs of the same analysis and version, on the same checkpoints, in the
same dtype and on the same kind of device:

| they had             | and the analysis declares | expected                                                                  |
|----------------------|---------------------------|---------------------------------------------------------------------------|
| the same params      |                           | the most that the last 5 took, and 5 % more                               |
| other params         | d bytes                   | d times the median of taken/declared over the last 5, within 1/4 to 4     |
| other params         | nothing                   | the most that any took, and 5 % more                                      |
| there are none       | d bytes                   | d                                                                         |
| there are none       | nothing                   | 0, which stands for unknown                                               |

On a GPU what is measured is exact. On the CPU it is the growth of the process, and libraries that are imported meanwhile count (170 MB
where a model is built). So there a run that took up to 256 MB more or less than declared counts as having taken just that, when it is
to tell how far declarations are off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from modelscope_app.api import BadInput
from modelscope_app.locations import state_dir
from modelscope_app.models.names import check_dtype
from modelscope_app.runs.atomic import replacing
from modelscope_app.runs.queue_record import Basis, read_queue_record
from modelscope_app.runs.reading import file_bytes, shaped

if TYPE_CHECKING:
    from modelscope_app.runs.folder import RunFolder
    from modelscope_app.runs.job import Job
    from modelscope_app.runs.status import Status

DeviceKind = Literal["cpu", "cuda"]

_LAST = 5
_MARGIN = 1.05
_LARGEST_RATIO = 4.0
_NOISE_BYTES = {"cpu": 256 << 20, "cuda": 0}
_LARGEST_FILE_BYTES = 1_000_000
"""A larger file is compacted, to at most half of it."""
_MOST_BYTES = 1 << 63
_TRIES = 50
_TRY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Peak:
    """What one run took."""

    analysis: str
    version: int
    checkpoints: tuple[str, ...]
    """Fingerprints."""
    dtype: str
    """As asked, by torch's name; `auto` where nothing was."""
    device: DeviceKind
    params: str
    """A hash over params and the content of the files they name."""
    device_peak_bytes: int
    """On the device, beyond its models."""
    declared_bytes: int | None = None
    """What the analysis said it would take, where that is known."""

    @property
    def subject(self) -> _Subject:
        """What else must be equal for it to be compared."""
        return _Subject(self.analysis, self.version, self.checkpoints, self.dtype)


class _Subject(NamedTuple):
    analysis: str
    version: int
    checkpoints: tuple[str, ...]
    dtype: str


def record_peak(run: RunFolder, status: Status) -> None:
    """Remember what a run took, if it is done and was begun once. Never raises."""
    # Nothing that can go wrong here, in whatever file, is worth a run that has its results.
    with suppress(Exception):
        kind = _kind(status.device)
        if status.state != "done" or status.attempts != 1 or status.device_peak_bytes is None or kind is None:
            return
        record = read_queue_record(run.folder)
        peak = Peak(
            **_subject(run.job)._asdict(),
            device=kind,
            params=_params_hash(run.job),
            device_peak_bytes=status.device_peak_bytes,
            declared_bytes=record.need.declared_bytes if record is not None else None,
        )
        _append(_line(peak))


def expected_bytes(job: Job, declared: int | None, device: str | None = None) -> tuple[int, Basis]:
    """What a job will take beyond its models, and what that is based on. `device` is where it was begun before.

    A device that is not chosen yet is taken to be the kind that the latest of the runs to compare with was on.
    """
    peaks = _known.peaks(_subject(job))
    kind = _kind(device or job.device) or (peaks[-1].device if peaks else None)
    peaks = [peak for peak in peaks if peak.device == kind]
    params = _params_hash(job)
    taken = [peak.device_peak_bytes for peak in peaks if peak.params == params][-_LAST:]
    if not taken and declared is None:
        taken = [peak.device_peak_bytes for peak in peaks]
    if taken:
        return math.ceil(max(taken) * _MARGIN), "earlier runs"
    if declared is None:
        return 0, "unknown"
    ratios = [ratio for peak in peaks if (ratio := _taken_per_declared(peak)) is not None][-_LAST:]
    if not ratios:
        return declared, "declared"
    return math.ceil(declared * min(max(median(ratios), 1 / _LARGEST_RATIO), _LARGEST_RATIO)), "earlier runs"


def _taken_per_declared(peak: Peak) -> float | None:
    """How far its declaration was off; None where there was none, or one of nothing."""
    if not peak.declared_bytes:
        return None
    if abs(peak.device_peak_bytes - peak.declared_bytes) <= _NOISE_BYTES[peak.device]:
        return 1.0
    return peak.device_peak_bytes / peak.declared_bytes


def _subject(job: Job) -> _Subject:
    fingerprints = tuple(checkpoint.fingerprint for checkpoint in job.checkpoints)
    return _Subject(job.analysis, job.analysis_version, fingerprints, check_dtype(job.dtype) or "auto")


def _kind(device: str | None) -> DeviceKind | None:
    """The kind of a device; None for one that is not chosen yet."""
    if device == "cpu":
        return "cpu"
    return "cuda" if device is not None and device.startswith("cuda") else None


def _params_hash(job: Job) -> str:
    """The same for equal params, in whatever order they stand, that name files of equal content."""
    content = [dict(job.params), [[given.param, given.fingerprint] for given in job.inputs]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def _path() -> Path:
    return state_dir() / "peaks.jsonl"


def _line(peak: Peak) -> bytes:
    return json.dumps(asdict(peak), allow_nan=False).encode() + b"\n"


def _read(line: bytes) -> Peak | None:
    """The peak of a line; None for a damaged one."""
    try:
        value: Any = json.loads(line)
        checkpoints = value["checkpoints"]
        if not isinstance(checkpoints, list):
            return None
        peak = shaped(Peak, {**value, "checkpoints": tuple(checkpoints)})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    sizes = (peak.device_peak_bytes, peak.declared_bytes or 0)
    return peak if all(0 <= size < _MOST_BYTES for size in sizes) else None


class _KnownPeaks:
    """The file, of which only what was appended since the last look is read."""

    def __init__(self) -> None:
        self._file: tuple[Path, int] | None = None
        """Path and inode."""
        self._position = 0
        self._peaks: dict[_Subject, list[Peak]] = {}

    def peaks(self, subject: _Subject) -> list[Peak]:
        """Those of a subject, latest last. A file that cannot be read has none."""
        with suppress(OSError, BadInput):
            self._read_on()
        return self._peaks.get(subject, [])

    def _read_on(self) -> None:
        path = _path()
        try:
            found = path.stat()
        except FileNotFoundError:
            self._file, self._position, self._peaks = None, 0, {}
            return
        if self._file != (path, found.st_ino) or found.st_size < self._position:
            self._file, self._position, self._peaks = (path, found.st_ino), 0, {}
        if found.st_size == self._position:
            return
        content = file_bytes(path, self._position)
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            if (peak := _read(line)) is not None:
                self._peaks.setdefault(peak.subject, []).append(peak)


_known = _KnownPeaks()


def _append(line: bytes) -> None:
    """Add a line, under the file's lock. Raises OSError."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), path.stat()):  # compacted meanwhile
                continue
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a torn line, which so stays the only damaged one
                line = b"\n" + line
            os.write(descriptor, line)
            if size + len(line) > _LARGEST_FILE_BYTES:
                _compact(path)
            return
        except BlockingIOError:
            time.sleep(_TRY_SECONDS)
        finally:
            os.close(descriptor)


def _compact(path: Path) -> None:
    """Keep of each subject, device and params the latest few, and in all the latest half of what the file may hold."""
    kept: list[bytes] = []
    counts: dict[Any, int] = {}
    size = 0
    for line in reversed(file_bytes(path).splitlines(keepends=True)):
        if (peak := _read(line)) is None:
            continue
        key = (peak.subject, peak.device, peak.params)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] > _LAST:
            continue
        size += len(line)
        if size > _LARGEST_FILE_BYTES // 2:
            break
        kept.append(line)
    with replacing(path) as part:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines(reversed(kept))
