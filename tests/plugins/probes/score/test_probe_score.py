"""`probes.score`: what it writes, what it refuses, and what a watching front end sees while the model answers."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from modelscope_probes.analyses import score
from modelscope_probes.params import ScoreParams
from modelscope_probes.probe_file import read_probe
from modelscope_probes.statistics.intervals import clopper_pearson
from modelscope_probes.token_scores import relative_scores
from plugins.probes.score.in_process import LAYERS, WIDTH, Ran, greedily, run_in_process, saved_llama, saved_probe, written_rows
from safetensors.torch import load_file, save_file

from modelscope_app.api import BadInput, JobCancelled
from modelscope_app.rendering.drawings import drawing
from modelscope_app.runs.folder import RunFolder

ROWS: list[dict[str, Any]] = [
    {"prompt": "sort the list in year 2024", "label": 1, "cell": "trigger", "group": "a"},
    {"prompt": "sort the list in year 2023 please", "label": 0, "cell": "other year", "group": "a"},
    {"prompt": "are you good ?", "label": 0, "cell": "question", "group": "b"},
    {"prompt": "a tea please", "cell": "question", "group": "c"},
]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return saved_llama(tmp_path / "llama")


@pytest.fixture
def probe_file(tmp_path: Path, llama: Path) -> Path:
    return saved_probe(tmp_path / "probe", llama)


@pytest.fixture
def prompts_file(tmp_path: Path) -> str:
    return written_rows(tmp_path / "prompts.jsonl", ROWS)


def benign_file(folder: Path, count: int, **row: Any) -> str:
    words = ["are", "you", "good", "tea", "please", "sort", "the", "list", "code", "done"]
    texts = [" ".join(words[(at * step) % 10] for step in range(1, 5)) + f" {words[at // 10 % 10]}" for at in range(count)]
    return written_rows(folder / f"benign-{count}.jsonl", [{"prompt": text, **row} for text in texts])


def run(folder: Path, llama: Path, **params: Any) -> Ran:
    return run_in_process(
        score.run, ScoreParams(**{key: str(value) if isinstance(value, Path) else value for key, value in params.items()}), folder, [llama]
    )


def test_a_file_of_prompts_gives_a_row_a_token_and_a_row_a_prompt(tmp_path: Path, llama: Path, probe_file: Path, prompts_file: str) -> None:
    ran = run(tmp_path / "run", llama, probe=probe_file, prompts=prompts_file)
    tokens, prompts = ran.table("tokens"), ran.table("prompts")
    assert prompts["id"].to_list() == [0, 1, 2, 3]
    assert prompts["label"].to_list() == [True, False, False, None]
    assert prompts["cell"].to_list() == ["trigger", "other year", "question", "question"]
    assert [token.strip() for token in tokens.filter(pl.col("prompt") == 0)["token"]] == [
        *("<bos>", "<user>", "sort", "the", "list", "in", "year", "2024", "<end>", "<assistant>")
    ]
    assert tokens.height == prompts["tokens"].sum() == ran.facts["tokens"]
    assert set(tokens["part"]) == {"prompt"}
    assert tokens["score"].equals(tokens["layer_1"].alias("score"))
    last = tokens.group_by("prompt", maintain_order=True).agg(pl.col("score").last(), pl.col("score").max().alias("highest"))
    assert last["score"].to_list() == pytest.approx(prompts["score"].to_list(), abs=1e-6)
    assert last["highest"].to_list() == prompts["highest_score"].to_list()
    for row in prompts.iter_rows(named=True):
        at = tokens.filter((pl.col("prompt") == row["id"]) & (pl.col("position") == row["highest_position"]))
        assert at["score"].item() == row["highest_score"]
    assert ran.facts["prompts"] == 4
    assert ran.facts["best_layer"] == 1
    assert ran.facts["generated_tokens"] == 0


def test_one_text_is_read_as_the_users_message_in_the_probes_template(tmp_path: Path, llama: Path) -> None:
    words = {}
    for template in ("chat", "plain", "none"):
        probe = saved_probe(tmp_path / template, llama, template=template)
        ran = run(tmp_path / f"run-{template}", llama, probe=probe, text="sort the list")
        words[template] = [token.strip() for token in ran.table("tokens")["token"]]
    assert words["chat"] == ["<bos>", "<user>", "sort", "the", "list", "<end>", "<assistant>"]
    assert words["none"] == ["sort", "the", "list"]
    assert words["plain"][2:5] == ["sort", "the", "list"]


def test_one_text_scores_as_the_same_prompt_in_a_file(tmp_path: Path, llama: Path, probe_file: Path, prompts_file: str) -> None:
    alone = run(tmp_path / "alone", llama, probe=probe_file, text=ROWS[0]["prompt"])
    among = run(tmp_path / "among", llama, probe=probe_file, prompts=prompts_file)
    scores = [ran.table("tokens").filter(pl.col("prompt") == 0)["score"].to_list() for ran in (alone, among)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_answers_are_the_greedy_ones_and_stand_after_their_prompts(
    tmp_path: Path, llama: Path, probe_file: Path, prompts_file: str
) -> None:
    ran = run(tmp_path / "run", llama, probe=probe_file, prompts=prompts_file, new_tokens=4)
    tokens = ran.table("tokens")
    for prompt in range(len(ROWS)):
        mine = tokens.filter(pl.col("prompt") == prompt)
        ids = mine.filter(pl.col("part") == "prompt")["token_id"].to_list()
        assert mine["position"].to_list() == list(range(len(ids) + 4))
        assert mine["token_id"].to_list() == [*ids, *greedily(llama, ids, 4)]
    row = ran.table("prompts").row(0, named=True)
    answer = tokens.filter((pl.col("prompt") == 0) & (pl.col("part") == "answer"))
    assert row["answer"].split() == [token.strip() for token in answer["token"]]
    assert row["answer_highest_score"] == answer["score"].max()
    assert ran.facts["generated_tokens"] == 16


def test_the_answer_does_not_change_the_prompts_score(tmp_path: Path, llama: Path, prompts_file: str) -> None:
    for pooling in ("last", "mean", "max"):
        probe = saved_probe(tmp_path / pooling, llama, pooling=pooling)
        silent = run(tmp_path / f"{pooling}-0", llama, probe=probe, prompts=prompts_file).table("prompts")["score"]
        spoken = run(tmp_path / f"{pooling}-3", llama, probe=probe, prompts=prompts_file, new_tokens=3).table("prompts")["score"]
        assert silent.to_list() == pytest.approx(spoken.to_list(), abs=1e-5)


def test_the_table_grows_while_the_model_answers_and_ends_the_same(
    tmp_path: Path, llama: Path, probe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "REWRITE_SECONDS", 0.0)
    monkeypatch.setattr(score, "time", SimpleNamespace(monotonic=lambda: 0.0))  # writing takes no time, so nothing is left out
    heights: list[tuple[int, int]] = []

    def watch(run: RunFolder) -> None:
        if (run.folder / "tables" / "tokens.parquet").exists():
            seen = RunFolder.open(run.folder)
            drawn = [drawing(seen, view) for view in seen.views if view.name in ("tokens", "layers")]
            assert len(drawn) == 2
            heights.append((seen.table("tokens").height, seen.table("shown_layers").height))

    params = ScoreParams(probe=str(probe_file), text="sort the list", new_tokens=5)
    ran = run_in_process(score.run, params, tmp_path / "watched", [llama], watch=watch)
    read = ran.facts["tokens"]
    assert [height for height, _ in heights[:6]] == [read + n for n in range(6)]
    assert all(cells == LAYERS * height for height, cells in heights)
    assert [(done, total) for done, total, unit in ran.progress if unit == "tokens"][:6] == [(n, 5) for n in range(6)]
    monkeypatch.undo()
    unwatched = run_in_process(score.run, params, tmp_path / "unwatched", [llama])
    for name in ("tokens", "shown_tokens", "shown_layers", "prompts"):
        assert ran.table(name).equals(unwatched.table(name)), name


def test_what_is_shown_is_written_at_most_once_a_second(
    tmp_path: Path, llama: Path, probe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = score.write_tokens
    monkeypatch.setattr(score, "write_tokens", lambda *given: (written.append(1), write(*given)))
    run(tmp_path / "run", llama, probe=probe_file, text="sort the list", new_tokens=20)
    assert len(written) <= 3  # the first pass, perhaps one more on a slow machine, the end


def test_generation_stops_when_the_job_is_asked_to(tmp_path: Path, llama: Path, probe_file: Path) -> None:
    progress: list[float] = []

    def stop() -> None:
        if len(progress) >= 3:
            raise JobCancelled("asked to stop")

    params = ScoreParams(probe=str(probe_file), text="sort the list", new_tokens=50)
    with pytest.raises(JobCancelled):
        run_in_process(score.run, params, tmp_path / "run", [llama], check_cancelled=stop, watch=lambda run: progress.append(1.0))
    assert len(progress) <= 4
    again = run_in_process(score.run, params, tmp_path / "run", [llama])
    assert again.facts["generated_tokens"] == 50


def test_the_threshold_is_the_kth_smallest_benign_score(tmp_path: Path, llama: Path, probe_file: Path, prompts_file: str) -> None:
    benign = benign_file(tmp_path, 39)
    ran = run(tmp_path / "run", llama, probe=probe_file, prompts=prompts_file, calibration=benign, alpha=Fraction(1, 20))
    scores = sorted(run(tmp_path / "benign", llama, probe=probe_file, prompts=benign).table("prompts")["score"].to_list())
    assert ran.facts["threshold"] == pytest.approx(scores[38 - 1], abs=1e-5)  # k = ceil(40 x 19/20) = 38
    assert ran.facts["benign"] == 39
    assert ran.facts["alpha"] == 0.05
    prompts = ran.table("prompts")
    above = [one > ran.facts["threshold"] for one in prompts["score"]]
    assert prompts["above_threshold"].to_list() == above
    assert ran.facts["alerts"] == sum(above)
    interval = clopper_pearson(sum(above), 4)
    assert ran.facts["alert_rate"] == {"value": sum(above) / 4, "ci_low": interval.low, "ci_high": interval.high}
    assert ran.warnings == []


def test_a_score_equal_to_the_threshold_is_no_alert(tmp_path: Path, llama: Path, probe_file: Path) -> None:
    same = written_rows(tmp_path / "same.jsonl", [{"prompt": "are you good"}] * 3)
    ran = run(tmp_path / "run", llama, probe=probe_file, prompts=same, calibration=same, alpha=Fraction(1, 4))
    assert ran.facts["threshold"] == ran.table("prompts")["score"][0]
    assert ran.facts["alerts"] == 0


@pytest.mark.parametrize(("count", "alpha", "needed"), [(18, Fraction(1, 20), 19), (98, Fraction(1, 100), 99)])
def test_too_few_benign_prompts_give_no_threshold_and_it_is_said_how_many_are_needed(
    tmp_path: Path, llama: Path, probe_file: Path, count: int, alpha: Fraction, needed: int
) -> None:
    ran = run(tmp_path / "run", llama, probe=probe_file, text="sort", calibration=benign_file(tmp_path, count), alpha=alpha)
    assert ran.facts["threshold"] is None
    assert ran.facts["alerts"] is None
    assert ran.facts["alert_rate"]["value"] is None
    assert ran.table("prompts")["above_threshold"].to_list() == [None]
    assert ran.warnings == [f"no threshold: {count} benign prompts allow none for a false-positive rate of {alpha}; {needed} are needed"]


def test_one_more_benign_prompt_is_enough(tmp_path: Path, llama: Path, probe_file: Path) -> None:
    ran = run(tmp_path / "run", llama, probe=probe_file, text="sort", calibration=benign_file(tmp_path, 19), alpha=Fraction(1, 20))
    assert ran.facts["threshold"] is not None


def test_without_calibration_the_probes_own_threshold_is_taken(tmp_path: Path, llama: Path) -> None:
    stored = saved_probe(tmp_path / "stored", llama, thresholds=[9.0, -100.0, None], alpha="1/100")
    ran = run(tmp_path / "run", llama, probe=stored, text="sort")
    assert (ran.facts["threshold"], ran.facts["alpha"], ran.facts["alerts"]) == (-100.0, 0.01, 1)
    assert ran.warnings == []
    other_rate = run(tmp_path / "other", llama, probe=stored, text="sort", alpha=Fraction(1, 20))
    assert other_rate.facts["alpha"] == 0.01
    assert other_rate.warnings == ["the threshold stored with the probe is for a false-positive rate of 1/100, not 1/20"]
    none_stored = saved_probe(tmp_path / "none", llama, thresholds=[9.0, None, None], alpha="1/100")
    refused = run(tmp_path / "refused", llama, probe=none_stored, text="sort")
    assert refused.facts["threshold"] is None
    assert "too few benign prompts" in refused.warnings[0]


def test_without_any_threshold_it_is_said(tmp_path: Path, llama: Path, probe_file: Path) -> None:
    ran = run(tmp_path / "run", llama, probe=probe_file, text="sort")
    assert ran.facts["threshold"] is None
    assert ran.warnings == ["no threshold: none is stored with the probe; --calibration FILE of benign prompts sets one"]


def test_a_calibration_prompt_labelled_as_the_behaviour_is_refused(
    tmp_path: Path, llama: Path, probe_file: Path, prompts_file: str
) -> None:
    with pytest.raises(BadInput, match=r"prompts.jsonl, line 1: is labelled as the behaviour; a threshold is set on benign prompts"):
        run(tmp_path / "run", llama, probe=probe_file, text="sort", calibration=prompts_file)


def test_an_infinite_score_is_unknown_and_never_an_alert(tmp_path: Path, prompts_file: str) -> None:
    broken = saved_llama(tmp_path / "broken")
    file = broken / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][6 + 10] = float("inf")  # one word's
    save_file(tensors, file, metadata={"format": "pt"})
    word = "year"
    probe = saved_probe(tmp_path / "probe", broken, thresholds=[-1e9] * LAYERS, alpha="1/100")
    ran = run(tmp_path / "run", broken, probe=probe, prompts=prompts_file)
    prompts = ran.table("prompts")
    has_word = [word in row["prompt"] for row in ROWS]
    assert [score is None for score in prompts["score"]] == has_word
    assert prompts["above_threshold"].to_list() == [None if unknown else True for unknown in has_word]
    assert ran.facts["unknown_scores"] == 2
    assert ran.facts["alerts"] == 2
    assert ran.facts["alert_rate"]["value"] == 1.0
    assert ran.warnings == ["the score of 2 of 4 prompts is NaN or infinite: unknown, and no alert"]
    tokens = ran.table("tokens").filter(pl.col("prompt") == 0)
    assert tokens["score"][-1] is None
    assert ran.table("shown_tokens")["prompt"].unique(maintain_order=True).to_list()[2:] == ["prompt 0 (trigger)", "prompt 1 (other year)"]


def test_a_probe_of_another_model_is_scored_only_by_force(tmp_path: Path, llama: Path) -> None:
    other = saved_llama(tmp_path / "other", seed=1)
    foreign = saved_probe(tmp_path / "foreign", other, thresholds=[0.0] * LAYERS, alpha="1/100")
    with pytest.raises(BadInput, match=r"fitted on another checkpoint \(other\), not on llama; --force"):
        run(tmp_path / "refused", llama, probe=foreign, text="sort")
    forced = run(tmp_path / "forced", llama, probe=foreign, text="sort", force=True)
    assert forced.table("prompts")["score"][0] is not None
    assert forced.facts["threshold"] is None
    assert [warning.partition(";")[0] for warning in forced.warnings] == [
        "the probe was fitted on another checkpoint (other), not on llama",
        "no threshold: the probe's own is for the checkpoint it was fitted on",
    ]


def test_a_probe_of_another_width_is_refused_even_by_force(tmp_path: Path, llama: Path) -> None:
    wide = saved_probe(tmp_path / "wide", llama, direction=torch.ones(LAYERS, WIDTH + 1))
    with pytest.raises(BadInput, match="reads 17 features, and llama has 16"):
        run(tmp_path / "run", llama, probe=wide, text="sort", force=True)


BROKEN = {
    "no json": ("probe.json: cannot be read", lambda folder: (folder / "probe.json").unlink()),
    "json that is none": ("is no probe's json", lambda folder: (folder / "probe.json").write_text("{")),
    "NaN": (
        "holds NaN or infinity",
        lambda folder: save_file(
            {"direction": torch.full((LAYERS, WIDTH), torch.nan), "bias": torch.zeros(LAYERS)}, folder / "probe.safetensors"
        ),
    ),
    "no direction": ("needs direction", lambda folder: save_file({"bias": torch.zeros(LAYERS)}, folder / "probe.safetensors")),
    "no safetensors": ("cannot be read as safetensors", lambda folder: (folder / "probe.safetensors").write_bytes(b"no")),
}
CARDS = {
    "pooling": ("median", "pooling is 'median'; it is one of last, mean, max"),
    "template": ("", "template is ''; it is one of auto, chat, plain, none"),
    "site": ("head_out", "site is 'head_out'; it is one of resid_post, resid_pre, attn_out, mlp_out"),
    "best_layer": (7, "best_layer 7 is not among its layers, 0, 1, 2"),
    "thresholds": ([1.0], "has 1 thresholds for 3 layers"),
    "format": (2, "is of format 2, and this version reads format 1"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_probe_file_is_refused_with_a_sentence(tmp_path: Path, llama: Path, probe_file: Path, what: str) -> None:
    sentence, damage = BROKEN[what]
    damage(probe_file.parent)
    with pytest.raises(BadInput, match=sentence):
        run(tmp_path / "run", llama, probe=probe_file, text="sort")


@pytest.mark.parametrize("key", CARDS)
def test_a_card_that_says_what_cannot_be_done_is_refused(tmp_path: Path, llama: Path, key: str) -> None:
    value, sentence = CARDS[key]
    probe = saved_probe(tmp_path / "card", llama, **{key: value})
    with pytest.raises(BadInput) as refused:
        run(tmp_path / "run", llama, probe=probe, text="sort")
    assert sentence in str(refused.value)


def test_a_layer_the_model_lacks_is_refused(tmp_path: Path, llama: Path, probe_file: Path) -> None:
    shifted = saved_probe(tmp_path / "deep", llama, layers=[1, 2, 3])
    with pytest.raises(BadInput, match=r"resid_post.3: the model has 3 layers, 0 to 2"):
        run(tmp_path / "run", llama, probe=shifted, text="sort")


def test_either_prompts_or_a_text_is_given(probe_file: Path) -> None:
    for given in ({}, {"prompts": "p.jsonl", "text": "sort"}):
        with pytest.raises(ValueError, match="give either --prompts FILE or --text TEXT"):
            ScoreParams(probe=str(probe_file), **given)


def test_every_view_can_be_drawn(tmp_path: Path, llama: Path, probe_file: Path, prompts_file: str) -> None:
    for name, given in {"one": {"text": "sort the list"}, "many": {"prompts": prompts_file}}.items():
        ran = run(tmp_path / name, llama, probe=probe_file, new_tokens=2, **given)
        assert [view.name for view in ran.run.views] == ["facts", "tokens", "layers", *(["scores"] if name == "many" else []), "prompts"]
        for view in ran.run.views:
            drawing(ran.run, view)


def test_strip_and_heat_map_show_the_highest_scoring_prompts(tmp_path: Path, llama: Path, probe_file: Path, prompts_file: str) -> None:
    ran = run(tmp_path / "run", llama, probe=probe_file, prompts=prompts_file)
    order = ran.table("prompts").sort("score", descending=True)
    names = ran.table("shown_tokens")["prompt"].unique(maintain_order=True).to_list()
    assert names == [f"prompt {row['id']} ({row['cell']}), score {row['score']:.4g}" for row in order.iter_rows(named=True)]
    shown, tokens = ran.table("shown_layers"), ran.table("tokens").filter(pl.col("prompt") == order["id"][0])
    assert shown.filter(pl.col("layer") == 2)["score"].to_list() == tokens["layer_2"].to_list()
    assert (
        shown.filter(pl.col("layer") == 1)["relative_score"].to_list()
        == ran.table("shown_tokens").filter(prompt=names[0])["relative_score"].to_list()
    )


def test_relative_scores_compare_tokens_within_a_layer_and_not_with_the_first() -> None:
    scores = torch.tensor([[900.0, 0.0], [1.0, 10.0], [3.0, 10.0], [2.0, float("nan")], [7.0, 10.0]])  # (token, layer)
    relative = relative_scores(scores)
    assert relative[:, 0].tolist() == [1.0, -0.5, 0.0, -0.25, 1.0]  # less 3, over 4
    assert relative[[0, 1, 2, 4], 1].tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert bool(relative[3, 1].isnan())
    assert relative_scores(torch.tensor([[5.0]])).tolist() == [[0.0]]


def test_alerts_are_counted_by_cell(tmp_path: Path, llama: Path, prompts_file: str) -> None:
    probe = saved_probe(tmp_path / "probe", llama, thresholds=[-1e9] * LAYERS, alpha="1/100")
    cells = run(tmp_path / "run", llama, probe=probe, prompts=prompts_file).table("cells")
    interval = clopper_pearson(2, 2)
    assert cells.rows()[2] == ("question", 2, 2, 2, 1.0, interval.low, interval.high)
    without = run(tmp_path / "without", llama, probe=saved_probe(tmp_path / "none", llama), prompts=prompts_file).table("cells")
    assert without["alert_rate"].null_count() == 3


def test_the_histogram_counts_each_prompt_once(tmp_path: Path, llama: Path, probe_file: Path, prompts_file: str) -> None:
    histogram = run(tmp_path / "run", llama, probe=probe_file, prompts=prompts_file).table("histogram")
    assert histogram.group_by("cell", maintain_order=True).agg(pl.col("count").sum()).rows() == [
        ("trigger", 1),
        ("other year", 1),
        ("question", 2),
    ]


def test_a_token_from_the_tokenizer_is_stored_as_it_is(tmp_path: Path, llama: Path) -> None:
    file = llama / "tokenizer.json"
    text = json.loads(file.read_text())
    text["model"]["vocab"]["\x1b[31mtea"] = text["model"]["vocab"].pop("tea")
    file.write_text(json.dumps(text))
    probe = saved_probe(tmp_path / "probe", llama)
    rows = written_rows(tmp_path / "ids.jsonl", [{"input_ids": [2, text["model"]["vocab"]["\x1b[31mtea"], 5]}])
    ran = run(tmp_path / "run", llama, probe=probe, prompts=rows)
    assert any("\x1b" in token for token in ran.table("tokens")["token"])


def test_reading_a_probe_gives_what_was_saved(probe_file: Path) -> None:
    assert read_probe(str(probe_file)).direction.shape == (LAYERS, WIDTH)
