"""What the service hands to a preparer becomes a queued run, or a sentence that says why not."""

from __future__ import annotations

import json
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preparer_process import PreparerProcess, request

from modelscope_app.runs.folder import RunFolder
from modelscope_app.runs.index import found_runs, runs_dir
from modelscope_app.runs.queue_record import Need, read_queue_record
from modelscope_app.testing import write_checkpoint

pytest_plugins = ["preparer_process"]

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"


def assert_nothing_was_made() -> None:
    found = found_runs()
    assert not found.runs and not found.unreadable
    assert not list(runs_dir().glob("*"))


def test_a_submission_becomes_a_queued_run(preparer: PreparerProcess, plugin_site: Path) -> None:
    before = time.time()
    said = preparer.prepared("submitted.plain", params={"rows": 7}, device="cuda", dtype="bf16", seed=5, id="mine")
    assert said.keys() == {"say", "id", "run", "folder", "warnings"} and said["id"] == "mine" and said["warnings"] == []
    run = RunFolder.open(Path(said["folder"]))
    assert run.folder == runs_dir() / said["run"]
    assert (run.id, run.analysis, run.status) == (said["run"], "submitted.plain", "queued")
    assert run.job.params == {"rows": 7, "scale": 1.0, "sizes": [1, 2], "text": "", "data": "", "earlier": ""}
    assert (run.job.device, run.job.dtype, run.job.seed) == ("cuda:0", "bf16", 5)
    assert run.job.command == "mscope run submitted.plain --rows 7 --device cuda --dtype bf16 --seed 5"
    record = read_queue_record(run.folder)
    assert record is not None and before <= record.submitted <= time.time()
    assert (record.host, record.interpreter, record.python_path) == (socket.gethostname(), sys.executable, str(plugin_site))
    assert record.requeues == 0 and record.need == Need()


@pytest.mark.parametrize(
    ("params", "stored"),
    [
        ({"rows": "7", "scale": "0.5", "sizes": "3,4"}, {"rows": 7, "scale": 0.5, "sizes": [3, 4]}),
        ({"rows": 7, "scale": 1, "sizes": [3, 4]}, {"rows": 7, "scale": 1.0, "sizes": [3, 4]}),
        ({"--rows": 7, "sizes": []}, {"rows": 7, "sizes": []}),
    ],
    ids=["typed text", "JSON", "option names"],
)
def test_params_are_what_a_user_types_or_json_values(preparer: PreparerProcess, params: dict[str, Any], stored: dict[str, Any]) -> None:
    said = preparer.prepared("submitted.plain", params=params)
    job = RunFolder.open(Path(said["folder"])).job
    assert {name: job.params[name] for name in stored} == stored


def test_relative_paths_begin_where_the_client_is_and_every_path_is_stored_absolute(preparer: PreparerProcess, tmp_path: Path) -> None:
    here = tmp_path / "here"
    write_checkpoint(here / "tiny", {"w": [1.0]})
    (here / "rows.txt").write_text("one\n")
    said = preparer.prepared("submitted.weights", "tiny", cwd=str(here), out="results")
    job = RunFolder.open(here / "results").job
    assert said["folder"] == str(here / "results") and job.checkpoints[0].path == str(here / "tiny")
    data = preparer.prepared("submitted.plain", params={"data": "rows.txt"}, cwd=str(here))
    assert RunFolder.open(Path(data["folder"])).job.inputs[0].path == str(here / "rows.txt")
    earlier = preparer.prepared("submitted.plain", params={"earlier": "./results"}, cwd=str(here))
    assert RunFolder.open(Path(earlier["folder"])).job.params["earlier"] == str(here / "results")
    assert Path(f"/proc/{preparer.process.pid}/cwd").readlink() == Path("/"), "no folder of a user's is kept busy"
    refused = preparer.prepare("submitted.weights", "tiny")
    assert refused["exit_code"] == 3 and refused["error"].startswith("/tiny does not exist")
    assert {run.id for run in found_runs().runs} == {said["run"], data["run"], earlier["run"]}, "the one elsewhere is in the index"


def test_a_model_of_the_hugging_face_cache_is_found(start_preparer: Callable[..., PreparerProcess], tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--acme--tiny"
    snapshot = write_checkpoint(model / "snapshots" / ("0" * 40), {"w": [1.0, 2.0]})
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    preparer = start_preparer(HF_HUB_CACHE=str(tmp_path / "hub"))
    said = preparer.prepared("submitted.weights", "hf:acme/tiny")
    assert RunFolder.open(Path(said["folder"])).job.checkpoints[0].path == str(snapshot)
    missing = preparer.prepare("submitted.weights", "hf:acme/missing")
    assert missing["exit_code"] == 3 and "acme/missing is not in the local Hugging Face cache" in missing["error"]


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("unknown analysis", {"analysis": "submitted.plane"}, 2, "no analysis 'submitted.plane'; did you mean submitted.plain?"),
    ("unknown plugin", {"analysis": "nobody.plain"}, 2, "no analysis 'nobody.plain'"),
    ("no name at all", {"analysis": ""}, 2, "no analysis ''"),
    ("unknown option", {"params": {"row": 7}}, 2, "no option 'row'; did you mean --rows?"),
    ("value out of range", {"params": {"rows": 0}}, 2, "--rows 0: takes an integer from 1 to 100000 (default 4)"),
    ("text for a number", {"params": {"rows": "many"}}, 2, "--rows many: takes an integer"),
    ("an object for a number", {"params": {"rows": {"a": 1}}}, 2, "--rows"),
    ("nothing for a number", {"params": {"rows": None}}, 2, "--rows none: takes an integer"),
    ("missing option", {"analysis": "submitted.required"}, 2, "--rows is required: it takes an integer"),
    ("too many checkpoints", {"checkpoints": [str(SAMPLE)]}, 2, "submitted.plain takes no checkpoint, and 1 was given"),
    ("too few checkpoints", {"analysis": "submitted.weights"}, 2, "submitted.weights takes 1 to 2 checkpoints, and none was given"),
    ("missing checkpoint", {"analysis": "submitted.weights", "checkpoints": ["/nowhere"]}, 3, "/nowhere does not exist"),
    ("no tokenizer", {"analysis": "submitted.language", "checkpoints": [str(SAMPLE)]}, 3, "there is no tokenizer.json"),
    ("no series", {"analysis": "submitted.series", "checkpoints": [str(SAMPLE)]}, 3, "is not a series"),
    ("unknown device", {"device": "gpu"}, 2, "--device 'gpu': write auto, cpu, cuda or cuda:N"),
    ("unknown dtype", {"dtype": "int8"}, 2, "--dtype 'int8': write auto or one of"),
    ("missing data", {"params": {"data": "/nowhere.txt"}}, 3, "/nowhere.txt: cannot be read (No such file or directory)"),
    ("a folder for data", {"params": {"data": "/tmp"}}, 3, "/tmp: cannot be read (it is no regular file)"),
    ("a NUL in a path", {"params": {"data": "/a\0b"}}, 3, "cannot be the path of a file"),
    ("half a character in a path", {"params": {"data": "/\ud800"}}, 3, "cannot be the path of a file"),
    ("missing run", {"params": {"earlier": "20990101"}}, 3, "no run '20990101'"),
    ("no folder to be in", {"cwd": "/nowhere/at/all"}, 2, "cwd /nowhere/at/all: relative paths cannot begin there"),
    ("a file to be in", {"cwd": __file__}, 2, f"cwd {__file__}: relative paths cannot begin there (Not a directory)"),
    ("a relative folder to be in", {"cwd": "here"}, 2, 'cwd "here": takes the absolute path of a folder'),
    ("results where files are", {"out": str(SAMPLE)}, 3, f"{SAMPLE}: a run needs a new or empty folder"),
    ("results in a file", {"out": __file__}, 3, f"{__file__}: a file stands where the run folder should be"),
    ("results below a file", {"out": f"{__file__}/run"}, 3, f"{__file__}/run: a file stands where the run folder should be"),
    ("results where nothing can be made", {"out": "/proc/run"}, 3, "/proc/run: cannot be made a run folder"),
]


@pytest.mark.parametrize(("changes", "exit_code", "sentence"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_run_is_refused_with_a_sentence(
    preparer: PreparerProcess, changes: dict[str, Any], exit_code: int, sentence: str
) -> None:
    said = preparer.ask(**{**request("submitted.plain"), **changes})
    assert said["say"] == "refused" and said["id"] == 1
    assert (said["exit_code"], sentence in said["error"]) == (exit_code, True), said
    assert "\n" not in said["error"]
    assert_nothing_was_made()
    assert preparer.prepared("submitted.plain"), "the next submission is not troubled"


@pytest.mark.parametrize("changes", [{"analysis": "submitted.model"}, {"analysis": "submitted.weights"}], ids=["no config", "pickle"])
def test_a_checkpoint_of_the_wrong_kind_is_refused(preparer: PreparerProcess, tmp_path: Path, changes: dict[str, Any]) -> None:
    bare = write_checkpoint(tmp_path / "bare", {"w": [1.0]})
    pickle = tmp_path / "model.bin"
    pickle.write_bytes(b"\x80\x02.")
    said = preparer.ask(**{**request("", bare if changes["analysis"] == "submitted.model" else pickle), **changes})
    assert (said["say"], said["exit_code"]) == ("refused", 3)
    assert ("without config.json" in said["error"]) or ("is a pickle" in said["error"])


WRONG_VALUES: list[tuple[str, Any]] = [
    *(("analysis", value) for value in (None, 7, ["a"], "a\0b", "\ud800")),
    *(("checkpoints", value) for value in (None, "/a", [7], [["/a"]], {"a": 1}, ["/a\0b"])),
    *(("params", value) for value in (None, [], "rows=7", 7)),
    *((name, value) for name in ("device", "dtype") for value in (None, 0, [])),
    *(("seed", value) for value in (None, "0", 1.5, True, -1, 2**63)),
    *(("out", value) for value in (7, [], "a\0b")),
    *(("cwd", value) for value in (7, {}, "/a\0b")),
    *(("id", value) for value in (None, 1.5, True, [], {})),
    *(("do", value) for value in (None, 7, "prepair")),
]


def test_every_key_of_the_wrong_type_is_named(preparer: PreparerProcess) -> None:
    for key, value in WRONG_VALUES:
        said = preparer.ask(**{**request("submitted.plain"), key: value})
        assert said["say"] == "refused" and said["exit_code"] == 2, (key, value, said)
        assert key in said["error"], (key, value, said)
    assert_nothing_was_made()
    preparer.prepared("submitted.plain")


def test_every_missing_key_is_named(preparer: PreparerProcess) -> None:
    whole = request("submitted.plain")
    for key in whole:
        said = preparer.ask(**{name: value for name, value in whole.items() if name != key})
        assert said["say"] == "refused" and said["exit_code"] == 2 and said["error"] == f"the request has no {key!r}"
    assert preparer.ask(do="readmit", id=1)["error"] == "the request has no 'folder'"


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"], ids=lambda line: repr(line[:12])
)
def test_a_line_that_is_no_request_is_refused(preparer: PreparerProcess, line: bytes) -> None:
    preparer.write(line)
    said = preparer.hear()
    assert said is not None and (said["say"], said["id"], said["exit_code"]) == ("refused", None, 2)
    preparer.prepared("submitted.plain")


def test_what_cannot_be_written_to_its_end_is_not_there(start_preparer: Callable[..., PreparerProcess], tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: queue.json and status.json are small, job.json is not."""
    preparer = start_preparer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024)))
    said = preparer.prepare("submitted.plain", params={"text": "x" * 100_000})
    assert (said["say"], said["exit_code"]) == ("refused", 3) and "cannot be made a run folder (File too large)" in said["error"]
    assert_nothing_was_made()
    given = tmp_path / "given"
    given.mkdir()
    said = preparer.prepare("submitted.plain", params={"text": "x" * 100_000}, out=str(given))
    assert said["say"] == "refused" and list(given.iterdir()) == [], "a folder that was there stays, empty as it was"
    preparer.prepared("submitted.plain")


def test_two_preparers_make_a_thousand_runs_and_none_is_lost(start_preparer: Callable[..., PreparerProcess]) -> None:
    """A thousand within seconds: ids that begin with the second must not meet."""
    ids: list[str] = []

    def submit(preparer: PreparerProcess) -> None:
        ids.extend(preparer.prepared("submitted.plain", params={"rows": number + 1})["run"] for number in range(500))

    threads = [threading.Thread(target=submit, args=(start_preparer(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 1000
    found = found_runs()
    assert {run.id for run in found.runs} == set(ids) and not found.unreadable
    assert all((run.folder / "queue.json").is_file() for run in found.runs)


def test_a_reader_never_sees_a_run_without_its_queue_record(preparer: PreparerProcess) -> None:
    over = threading.Event()
    without: list[Path] = []

    def look() -> None:
        while not over.is_set():
            without.extend(run.folder for run in found_runs().runs if not (run.folder / "queue.json").is_file())

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(200):
        preparer.prepared("submitted.plain")
    over.set()
    reader.join()
    assert without == []


def test_it_ends_with_its_standard_input_and_has_imported_no_torch(preparer: PreparerProcess, tmp_path: Path) -> None:
    tiny = write_checkpoint(tmp_path / "tiny", {"w": [1.0]}, {"model_type": "mlp", "layer_sizes": [1, 1], "activation": "tanh"})
    said = preparer.prepared("submitted.model", tiny)
    assert said["warnings"] == []
    mapped = Path(f"/proc/{preparer.process.pid}/maps").read_text()
    assert "python" in mapped and "torch" not in mapped and "numpy" not in mapped
    assert Path(f"/proc/{preparer.process.pid}/cwd").readlink() == Path("/")
    assert preparer.end() == 0


def test_a_request_cut_off_by_the_end_of_standard_input_is_no_request(preparer: PreparerProcess) -> None:
    preparer.prepared("submitted.plain")
    assert preparer.process.stdin is not None
    preparer.process.stdin.write(json.dumps(request("submitted.plain")).encode())
    assert preparer.end() == 0 and preparer.hear() is None
    assert len(found_runs().runs) == 1
