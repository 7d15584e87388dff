"""`mscope run weights.*` on the sample checkpoints against the answers of numpy and scipy (`ask_scipy.py`; `make oracles` asks again).

The tolerance is what float64 sums in another order may differ by; the samples are float32 and both sides compute in float64.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars
import pytest

from modelscope_app.cli.main import exit_code_of

SAMPLES = Path(__file__).resolve().parents[2] / "sample_checkpoints"
ANSWERS: dict[str, Any] = json.loads(Path(__file__).with_name("scipy_answers.json").read_text())
BEFORE, AFTER = SAMPLES / "digits-mlp", SAMPLES / "digits-mlp-b"


def tables(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, polars.DataFrame]:
    assert exit_code_of(["run", *map(str, words), "--json", "--quiet"]) == 0
    paths = json.loads(capsys.readouterr().out)["tables"]
    return {name: polars.read_parquet(path) for name, path in paths.items()}


def by_name(table: polars.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["tensor"]: row for row in table.iter_rows(named=True)}


def assert_agree(found: dict[str, Any], answer: dict[str, Any]) -> None:
    assert {name: found[name] for name in answer} == pytest.approx(answer, rel=1e-10, abs=1e-14)


def test_statistics_agree(capsys: pytest.CaptureFixture[str]) -> None:
    found = tables(capsys, "weights.stats", BEFORE, "--bins", 16)
    rows = by_name(found["tensors"])
    assert set(rows) == set(ANSWERS["stats"])
    for name, answer in ANSWERS["stats"].items():
        assert found["histograms"].filter(tensor=name)["count"].to_list() == answer["counts"]
        assert_agree(rows[name], {key: value for key, value in answer.items() if key != "counts"})


def test_differences_agree(capsys: pytest.CaptureFixture[str]) -> None:
    rows = by_name(tables(capsys, "weights.diff", BEFORE, AFTER)["tensors"])
    assert set(rows) == set(ANSWERS["diff"])
    for name, answer in ANSWERS["diff"].items():
        assert_agree(rows[name], answer)


def test_the_series_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    steps = tables(capsys, "weights.series", BEFORE / "series")["steps"].filter(module="(all)").sort("step")
    rows = list(steps.iter_rows(named=True))[1:]
    assert len(rows) == len(ANSWERS["series"]) >= 5
    for row, answer in zip(rows, ANSWERS["series"], strict=True):
        assert_agree(row, answer)
