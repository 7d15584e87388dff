"""`mscope run` and `mscope runs` on the sample checkpoint, as a user or a script meets them."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import polars
import pytest

from modelscope_app.cli.main import exit_code_of

SAMPLE = Path(__file__).resolve().parents[2] / "sample_checkpoints" / "digits-mlp"


@pytest.fixture(autouse=True)
def quiet_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert exit_code_of([*map(str, words), "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    value: dict[str, Any] = json.loads(printed)
    return value


def test_a_run_prints_one_object_with_facts_and_paths_that_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run_json(capsys, "run", "weights.stats", SAMPLE, "--out", tmp_path / "run")
    assert result["status"] == "done"
    assert result["folder"] == str(tmp_path / "run")
    assert result["facts"]["tensors"] == 4
    for path in [*result["tables"].values(), *result["artifacts"].values()]:
        assert Path(path).is_absolute()
        assert Path(path).is_file()
    assert polars.read_parquet(result["tables"]["tensors"]).height == 4


def test_a_run_is_listed_shown_exported_and_removed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run_json(capsys, "run", "weights.stats", SAMPLE)
    (listed,) = json.loads(output(capsys, "runs", "list", "--json"))["runs"]
    assert listed["run"] == result["run"]
    assert result["run"] in output(capsys, "runs", "list")
    assert json.loads(output(capsys, "runs", "show", "latest", "--json"))["facts"] == result["facts"]
    shown = output(capsys, "runs", "show", result["run"])
    assert "state    done" in shown
    assert re.search(r"memory +[\d,]+ MB at its peak, [\d,]+ MB of it taken by the analysis", shown)

    (html,) = output(capsys, "runs", "export", "latest", "--out", tmp_path / "report.html").split()
    page = Path(html).read_text()
    assert "weights.stats" in page
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    exported = json.loads(Path(output(capsys, "runs", "export", "latest", "--format", "json").strip()).read_text())
    assert exported["facts"] == result["facts"]
    for file_format in ("csv", "parquet"):
        paths = output(capsys, "runs", "export", "latest", "--format", file_format, "--out", tmp_path / file_format).split()
        assert any(path.endswith(f"tensors.{file_format}") for path in paths)
    assert polars.read_parquet(tmp_path / "parquet" / "tensors.parquet").equals(polars.read_parquet(result["tables"]["tensors"]))

    assert exit_code_of(["runs", "remove", result["run"]]) == 2  # nobody there to say yes
    capsys.readouterr()
    assert "removed" in output(capsys, "runs", "remove", result["run"], "--yes")
    assert not Path(result["folder"]).exists()
    assert json.loads(output(capsys, "runs", "list", "--json")) == {"runs": []}


def output(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert exit_code_of([*map(str, words)]) == 0
    return capsys.readouterr().out


def test_the_command_a_run_shows_runs_it_again_with_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    first = run_json(capsys, "run", "weights.stats", os.path.relpath(SAMPLE), "--bins", "7", "--seed", "3", "--device", "cpu")
    job = json.loads((Path(first["folder"]) / "job.json").read_text())
    words = shlex.split(job["command"])
    assert words[:4] == ["mscope", "run", "weights.stats", str(SAMPLE)]
    assert "--bins" in words
    assert run_json(capsys, *words[1:])["facts"] == first["facts"]


def test_params_come_from_a_file_and_typed_ones_win(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "params.toml").write_text("bins = 5\n")
    (tmp_path / "params.json").write_text('{"bins": 6, "only": "*weight"}')

    def bins(*words: object) -> int:
        folder = run_json(capsys, "run", "weights.stats", SAMPLE, *words)["folder"]
        value: int = json.loads((Path(folder) / "job.json").read_text())["params"]["bins"]
        return value

    assert bins("--params", tmp_path / "params.toml") == 5
    assert bins("--params", tmp_path / "params.json") == 6
    assert bins("--params", tmp_path / "params.toml", "--bins", 9) == 9


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("binz = 5", "bins"), ("bins = 0", "--bins 0: takes an integer"), ("bins = [", "params.toml"), ("bins = true", "--bins")],
)
def test_a_wrong_params_file_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "params.toml").write_text(content)
    assert exit_code_of(["run", "weights.stats", str(SAMPLE), "--params", str(tmp_path / "params.toml")]) == 2
    assert sentence in capsys.readouterr().err


def test_an_assert_that_holds_is_silent_and_one_that_does_not_exits_5(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["run", "weights.stats", str(SAMPLE), "--json", "--quiet", "--assert", "tensors == 4", "--assert", "nan < 1"]) == 0
    assert capsys.readouterr().err == ""
    assert exit_code_of(["run", "weights.stats", str(SAMPLE), "--json", "--quiet", "--assert", "tensors > 4"]) == 5
    printed = capsys.readouterr()
    assert "does not hold, tensors is 4" in printed.err
    assert json.loads(printed.out)["status"] == "done"
    assert exit_code_of(["run", "weights.stats", str(SAMPLE), "--json", "--quiet", "--assert", "tensorz > 4"]) == 5
    assert "tensorz is not among the facts" in capsys.readouterr().err


def test_a_run_folder_in_use_is_refused_and_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert exit_code_of(["run", "weights.stats", str(SAMPLE), "--out", str(tmp_path)]) == 3
    assert "choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_done_run_is_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "run", "weights.stats", SAMPLE)
    assert exit_code_of(["runs", "resume", "latest"]) == 3
    assert "is done; only a run that failed, was cancelled or was lost" in capsys.readouterr().err


def test_watching_a_finished_run_exits_as_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "run", "weights.stats", SAMPLE)
    assert output(capsys, "runs", "watch", "latest").startswith(f"{result['run']} done")


def test_a_device_that_is_not_there_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["run", "weights.stats", str(SAMPLE), "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err
    assert exit_code_of(["run", "weights.stats", str(SAMPLE), "--device", "abacus"]) == 2
    assert exit_code_of(["run", "weights.stats", str(SAMPLE), "--dtype", "decimal"]) == 2
    assert json.loads(output(capsys, "runs", "list", "--json")) == {"runs": []}


def test_results_as_text_fit_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = output(capsys, "run", "weights.stats", SAMPLE).splitlines()
    assert len(lines) > 10
    assert max(len(line) for line in lines if not line.startswith("run ")) <= 80  # a path is never broken


def test_the_cache_is_listed_and_only_what_mscope_put_there_is_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "run", "weights.stats", SAMPLE)
    cache = Path(os.environ["MSCOPE_CACHE_DIR"])
    (cache / "someone-elses.txt").write_text("keep")
    assert set(json.loads(output(capsys, "cache", "list", "--json"))["bytes"]) >= {"fingerprints"}
    assert "freed" in output(capsys, "cache", "clear")
    assert [path.name for path in cache.iterdir()] == ["someone-elses.txt"]
