"""What finished runs took teaches the next estimate."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from preparer_process import PreparerProcess
from runs.made_runs import made_job, made_run

from modelscope_app.jobs.peaks import expected_bytes, record_peak
from modelscope_app.locations import state_dir
from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.job import JobCheckpoint, JobInput
from modelscope_app.runs.queue_record import Need, QueueRecord, read_queue_record
from modelscope_app.runs.status import Status

pytest_plugins = ["preparer_process"]

MB = 1 << 20
IMPORTS_BYTES = 48 * MB
"""What the CPU's measure may hold beside the analysis' own: threads, arenas and libraries that torch loads when first used."""


class Runs:
    """Records finished runs without running them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def took(self, peak: int | None, declared: int | None = None, status: dict[str, Any] | None = None, **job: Any) -> None:
        self.count += 1
        run = made_run(self.folder / f"run-{self.count}", **job)
        if declared is not None:
            QueueRecord(1.0, "here", "python", None, Need(declared_bytes=declared)).write(run.folder)
        record_peak(run, Status(**{"state": "done", "attempts": 1, "device": "cpu", "device_peak_bytes": peak, **(status or {})}))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def peaks_file() -> Path:
    return state_dir() / "peaks.jsonl"


def test_nothing_earlier_leaves_what_is_declared() -> None:
    assert expected_bytes(made_job(), 1000) == (1000, "declared")
    assert expected_bytes(made_job(), 0) == (0, "declared")
    assert expected_bytes(made_job(), None) == (0, "unknown")


def test_the_same_params_expect_the_most_of_the_last_five_and_5_percent_more(runs: Runs) -> None:
    for peak in (90_000, 100, 1000, 300, 200, 250):
        runs.took(peak)
    assert expected_bytes(made_job(), 7) == (1050, "earlier runs")
    assert expected_bytes(made_job(), None) == (1050, "earlier runs")


def test_params_are_the_same_in_whatever_order_and_their_files_by_content(runs: Runs) -> None:
    def data(path: str, fingerprint: str) -> dict[str, Any]:
        return {"params": {"a": 1, "b": [1, 2]}, "inputs": (JobInput("data", "data-file", path, fingerprint),)}

    runs.took(1000, **data("/rows.txt", "one"))
    same = {**data("/rows.txt", "one"), "params": {"b": [1, 2], "a": 1}}
    assert expected_bytes(made_job(**same), 7) == (1050, "earlier runs")
    assert expected_bytes(made_job(**data("/rows.txt", "two")), 7) == (7, "declared")
    assert expected_bytes(made_job(params={"a": 1, "b": [2, 1]}), 7) == (7, "declared")


@pytest.mark.parametrize(
    ("ratios", "factor"), [((2.0,), 2.0), ((1.0, 1.5, 3.0), 1.5), ((0.5,), 0.5), ((100.0,), 4.0), ((0.0001,), 0.25), ((0.0,), 0.25)]
)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_other_params_scale_what_is_declared_by_the_median_within_bounds(
    runs: Runs, ratios: tuple[float, ...], factor: float, device: str
) -> None:
    for number, ratio in enumerate(ratios):
        runs.took(int(ratio * 1000 * MB), 1000 * MB, {"device": device}, params={"bins": 1000 + number})
    assert expected_bytes(made_job(device=device), 600) == (int(600 * factor), "earlier runs")


@pytest.mark.parametrize(("taken", "declared"), [(93, 10), (0, 200), (300, 100)])
def test_on_the_cpu_what_libraries_take_or_earlier_jobs_leave_says_nothing_about_declarations(
    runs: Runs, taken: int, declared: int
) -> None:
    for device in ("cpu", "cuda:0"):
        runs.took(taken * MB, declared * MB, {"device": device}, params={"bins": 1000})
    assert expected_bytes(made_job(), 60 * MB) == (60 * MB, "earlier runs")
    assert expected_bytes(made_job(device="cuda:0"), 60 * MB)[0] != 60 * MB


def test_other_params_of_an_analysis_that_declares_nothing_expect_the_most_any_took(runs: Runs) -> None:
    for number, peak in enumerate((10, 2000, 30)):
        runs.took(peak, params={"bins": 1000 + number})
    assert expected_bytes(made_job(), None) == (2100, "earlier runs")
    assert expected_bytes(made_job(), 50) == (50, "declared"), "of no run is it known how far its declaration was off"


@pytest.mark.parametrize(
    "other",
    [
        {"analysis": "weights.diff"},
        {"analysis_version": 2},
        {"checkpoints": (JobCheckpoint("/models/tiny", "1" * 64),)},
        {"checkpoints": ()},
        {"dtype": "bfloat16"},
        {"device": "cuda:0"},
    ],
    ids=str,
)
def test_another_analysis_version_checkpoint_dtype_or_device_teaches_nothing(runs: Runs, other: dict[str, Any]) -> None:
    runs.took(1000)
    assert expected_bytes(made_job(**other), 7) == (7, "declared")
    assert expected_bytes(made_job(**other), None) == (0, "unknown")


def test_the_path_of_a_checkpoint_and_the_name_of_a_dtype_do_not_matter(runs: Runs) -> None:
    runs.took(1000, dtype="bf16")
    moved = (JobCheckpoint("/elsewhere", made_job().checkpoints[0].fingerprint),)
    assert expected_bytes(made_job(dtype="bfloat16", checkpoints=moved), None) == (1050, "earlier runs")


def test_a_device_that_is_not_chosen_yet_is_the_kind_of_the_latest_run(runs: Runs) -> None:
    job = made_job(device="auto")
    assert expected_bytes(job, 7) == (7, "declared")
    runs.took(1000, device="auto")
    assert expected_bytes(job, 7)[0] == 1050
    runs.took(40, device="auto", status={"device": "cuda:1"})
    assert expected_bytes(job, 7)[0] == 42
    assert expected_bytes(job, 7, "cpu")[0] == expected_bytes(replace(job, device="cpu"), 7)[0] == 1050
    assert expected_bytes(job, 7, "cuda:0")[0] == 42


@pytest.mark.parametrize(
    "status", [{"state": "failed"}, {"state": "cancelled"}, {"attempts": 2}, {"device": None}, {"device_peak_bytes": None}], ids=str
)
def test_only_runs_that_were_done_in_one_go_are_remembered(runs: Runs, status: dict[str, Any]) -> None:
    runs.took(1000, status=status)
    assert not peaks_file().exists()


DAMAGED = [
    b"\xff\xfe",
    b"{",
    b"[]",
    b"7",
    b"{}",
    b"[" * 10_000,
    b'{"analysis": "weights.stats"}',
    *(
        json.dumps({**line, **wrong}).encode()
        for line in [
            {
                "analysis": "weights.stats",
                "version": 1,
                "checkpoints": ["0" * 64],
                "dtype": "auto",
                "device": "cuda",
                "params": "x",
                "device_peak_bytes": 99_999,
                "declared_bytes": 1,
            }
        ]
        for wrong in (
            {"device_peak_bytes": -1},
            {"device_peak_bytes": None},
            {"device_peak_bytes": 1.5},
            {"device_peak_bytes": 10**40},
            {"declared_bytes": -1},
            {"declared_bytes": 10**400},
            {"device": "tpu"},
            {"checkpoints": "0" * 64},
            {"checkpoints": [7]},
            {"more": 1},
        )
    ),
]


def test_damaged_lines_are_passed_over(runs: Runs) -> None:
    gpu = {"device": "cuda:0"}
    job = made_job(params={}, device="cuda:0")
    runs.took(1000, 1000, gpu)
    with peaks_file().open("ab") as file:
        file.write(b"\n".join(DAMAGED) + b"\n")
    runs.took(1500, 1000, gpu)
    assert expected_bytes(job, 100) == (125, "earlier runs")
    with peaks_file().open("ab") as file:
        file.write(b'{"analysis": "torn')  # the disk was full; the next line is whole again
    runs.took(4000, 1000, gpu)
    assert expected_bytes(job, 100) == (150, "earlier runs")


def test_a_file_that_is_gone_or_replaced_is_read_anew(runs: Runs) -> None:
    runs.took(1000)
    assert expected_bytes(made_job(), 7)[0] == 1050
    kept = peaks_file().read_bytes()
    peaks_file().unlink()
    assert expected_bytes(made_job(), 7)[0] == 7
    peaks_file().write_bytes(kept)
    assert expected_bytes(made_job(), 7)[0] == 1050
    peaks_file().write_bytes(b"")
    assert expected_bytes(made_job(), 7)[0] == 7


def test_a_file_that_cannot_be_read_or_written_is_no_trouble(runs: Runs) -> None:
    peaks_file().mkdir(parents=True)
    runs.took(1000)
    assert expected_bytes(made_job(), 7) == (7, "declared")
    peaks_file().rmdir()
    os.mkfifo(peaks_file())
    runs.took(1000)
    assert expected_bytes(made_job(), 7) == (7, "declared")
    peaks_file().unlink()
    state_dir().rmdir()
    state_dir().write_text("a file where the folder should be")
    runs.took(1000)
    assert expected_bytes(made_job(), 7) == (7, "declared")


def test_a_large_file_is_compacted_and_keeps_the_latest_of_each(runs: Runs) -> None:
    for number in range(6):
        runs.took(100 + number, params={"kept": True})
    line = peaks_file().read_bytes().splitlines()[0]
    other = line.replace(b'"weights.stats"', b'"weights.other"')
    with peaks_file().open("wb") as file:
        file.write(line + b"\n")
        file.writelines(other + b"\n" for _ in range(1_000_000 // len(other)))
    for number in range(7):
        runs.took(200 + number, params={"kept": True})
    lines = peaks_file().read_bytes().splitlines()
    counts = [sum(json.loads(found)["analysis"] == name for found in lines) for name in ("weights.other", "weights.stats")]
    assert counts[0] == 5 and 5 <= counts[1] <= 8
    assert expected_bytes(made_job(params={"kept": True}), 7)[0] == 217
    assert stat.S_IMODE(peaks_file().stat().st_mode) == 0o600
    assert [path.name for path in state_dir().iterdir()] == ["peaks.jsonl"]


def test_a_file_full_of_runs_that_all_differ_is_halved(runs: Runs) -> None:
    runs.took(100)
    line = json.loads(peaks_file().read_bytes())
    with peaks_file().open("w") as file:
        for number in range(5000):
            file.write(json.dumps({**line, "params": f"{number:032}"}) + "\n")
    assert peaks_file().stat().st_size > 1_000_000
    runs.took(777)
    lines = peaks_file().read_bytes().splitlines()
    assert 400_000 < peaks_file().stat().st_size <= 500_000
    assert json.loads(lines[-1])["device_peak_bytes"] == 777 and json.loads(lines[-2])["params"] == f"{4999:032}"


def _record_many(folder: str, number: int) -> None:
    runs = Runs(Path(folder) / str(number))
    for count in range(100):
        runs.took(number, params={"number": number, "count": count})


def test_processes_that_finish_together_lose_no_line(tmp_path: Path) -> None:
    """With compactions in between: the file begins just below its limit."""
    Runs(tmp_path / "first").took(1)
    line = peaks_file().read_bytes()
    with peaks_file().open("wb") as file:
        file.writelines(line.replace(b'"weights.stats"', b'"weights.other"') for _ in range(1_000_000 // len(line) - 50))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_record_many, args=(str(tmp_path), number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [json.loads(line) for line in peaks_file().read_bytes().splitlines()]
    assert sum(line["analysis"] == "weights.other" for line in found) == 5, "it was compacted"
    assert len({line["params"] for line in found if line["analysis"] == "weights.stats"}) == 400


@pytest.fixture
def mscope(site_environment: dict[str, str]) -> Callable[..., Path]:
    """Runs `mscope` to its end in a process of its own, and gives back the run folder."""

    def run(*words: object) -> Path:
        command = [sys.executable, "-m", "modelscope_app.cli.main", *map(str, words), "--json", "--quiet"]
        ended = subprocess.run(command, env=site_environment, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode == 0, ended.stderr
        return Path(json.loads(ended.stdout)["folder"])

    return run


def need_of(said: dict[str, Any]) -> Need:
    record = read_queue_record(Path(said["folder"]))
    assert record is not None
    return record.need


def test_an_estimate_that_was_wrong_is_right_the_second_time(preparer: PreparerProcess, mscope: Callable[..., Path]) -> None:
    """The analysis declares 1 MB and takes 256."""
    params = {"megabytes": 1, "takes": 256}
    assert (need_of(preparer.prepared("submitted.declaring", params=params)).analysis_bytes) == MB
    ran = RunFolder.open(mscope("run", "submitted.declaring", "--takes", 256))
    measured = ran.read_status().device_peak_bytes
    assert measured is not None and 256 * MB <= measured <= 256 * MB + IMPORTS_BYTES
    need = need_of(preparer.prepared("submitted.declaring", params=params))
    assert need.basis == "earlier runs" and need.declared_bytes == MB
    assert measured <= need.analysis_bytes <= 1.06 * measured
    assert need_of(preparer.prepared("submitted.declaring", params={**params, "takes": 255})).basis == "declared"


EXECUTE = """
import sys
from pathlib import Path
from modelscope_app.jobs.execute import execute
from modelscope_app.jobs.interruption import Interruption
from modelscope_app.jobs.listener import Silent
from modelscope_app.jobs.submission import reopen
from modelscope_app.plugin_host import PluginHost
from modelscope_app.runs.folder import RunFolder

run, host = RunFolder.open(Path(sys.argv[1])), PluginHost()
assert execute(run, *reopen(run, host), host, Silent(), Interruption(), 5.0, run.job.device).state == "done"
"""


def test_runs_that_were_submitted_teach_how_far_the_declaration_is_off(preparer: PreparerProcess, site_environment: dict[str, str]) -> None:
    """It takes 600 MB and declares 300; so where it declares 500, twice as much is expected too."""
    folder = preparer.prepared("submitted.declaring", params={"megabytes": 300, "takes": 600})["folder"]
    subprocess.run([sys.executable, "-c", EXECUTE, folder], env=site_environment, check=True, timeout=300)
    measured = RunFolder.open(Path(folder)).read_status().device_peak_bytes
    assert measured is not None
    need = need_of(preparer.prepared("submitted.declaring", params={"megabytes": 500, "takes": 1000}))
    assert need.basis == "earlier runs" and need.analysis_bytes == pytest.approx(measured * 500 / 300, rel=1e-6)
    assert 1000 * MB <= need.analysis_bytes <= 1000 * MB + 2 * IMPORTS_BYTES


def test_an_analysis_that_declares_nothing_is_known_after_one_run(preparer: PreparerProcess, mscope: Callable[..., Path]) -> None:
    measured = RunFolder.open(mscope("run", "submitted.silent", "--takes", 64)).read_status().device_peak_bytes
    assert measured is not None
    for takes in (64, 32):
        need = need_of(preparer.prepared("submitted.silent", params={"takes": takes}))
        assert need.basis == "earlier runs" and measured <= need.analysis_bytes <= 1.06 * measured


def test_a_full_disk_loses_the_lesson_and_not_the_run(site_environment: dict[str, str]) -> None:
    """A limit on the size of files stands for it: peaks.jsonl is beyond it already, and nothing else the run writes is."""
    limit = 512 * 1024
    state_dir().mkdir(parents=True)
    peaks_file().write_bytes(b"\n" * limit)
    ended = subprocess.run(
        [sys.executable, "-m", "modelscope_app.cli.main", "run", "submitted.declaring", "--quiet"],
        env=site_environment,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    assert peaks_file().read_bytes() == b"\n" * limit


TWICE = """
from modelscope_app.jobs.memory import mark_peak, peak_bytes, resident_bytes

def took():
    mark_peak()
    before = resident_bytes()
    held = [b"x" * (60_000 + number % 7) for number in range(2000)]  # below what the allocator maps for itself alone
    kept.append(b"y" * 50_000)  # and something above it that stays, so that the heap cannot shrink by itself
    return peak_bytes() - before

kept = []
print(took(), took(), took())
"""


def test_what_an_earlier_job_has_freed_is_measured_again() -> None:
    ended = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True, timeout=60)
    assert all(int(bytes_taken) > 100 * MB for bytes_taken in ended.stdout.split()), ended.stdout
