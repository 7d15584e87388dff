"""`probes.linear` from the outside: files of activations, scores and pairs; held-out numbers against brute force; bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modelscope_app.api import FinishedRun
from modelscope_app.testing import RunFailed

pytest_plugins = ["modelscope_app.testing"]

Run = Callable[..., FinishedRun]
Write = Callable[..., str]
COUNT, WIDTH = 160, 10


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(**tensors: torch.Tensor) -> str:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "acts.safetensors")
        return str(tmp_path / "acts.safetensors")

    return written


def rows(strength: float = 1.5, layers: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, d] or [n, layer, d] with the label along axis 0 of the last layer, and y."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(COUNT) % 2
    x = torch.randn(COUNT, *([layers] if layers else []), WIDTH, generator=generator)
    (x[:, -1] if layers else x)[:, 0] += strength * y
    return x, y


def brute_auroc(score: torch.Tensor, y: torch.Tensor) -> float:
    high, low = score[y == 1].double(), score[y == 0].double()
    return float(((high[:, None] > low).double() + (high[:, None] == low).double() / 2).mean())


def test_rows_held_out_by_the_file_are_judged_with_a_probe_of_the_others(run_analysis: Run, write: Write) -> None:
    x, y = rows(layers=3)
    test = torch.arange(COUNT) >= 100
    run = run_analysis("probes.linear", activations=write(x=x, y=y, test=test.long(), unrelated=torch.zeros(2)), method="lda")
    probe, table = run.tensors("probe"), run.table("layers")
    assert probe["direction"].shape == (3, WIDTH) and probe["bias"].shape == (3,)
    for layer in range(3):
        inside, labels = x[~test, layer].double(), y[~test]
        low, high = inside[labels == 0], inside[labels == 1]
        within = torch.cat([low - low.mean(0), high - high.mean(0)])
        by_hand = torch.linalg.solve(within.T @ within / len(inside), high.mean(0) - low.mean(0))
        torch.testing.assert_close(probe["direction"][layer], by_hand, rtol=1e-8, atol=1e-10)
        assert table["test_auroc"][layer] == pytest.approx(brute_auroc(x[test, layer].double() @ by_hand, y[test]), abs=1e-12)
    assert run.facts["best_layer"] == 2 and run.facts["method"] == "lda" and run.facts["judged"] == "held out by the file"
    assert table.columns[:5] == ["layer", "method", "test_auroc", "ci_low", "ci_high"] and "delong_se" in table.columns
    assert run.facts["test_auroc"]["ci_low"] < run.facts["test_auroc"]["value"] < run.facts["test_auroc"]["ci_high"]


def test_without_a_part_held_out_groups_are_never_on_both_sides(run_analysis: Run, write: Write) -> None:
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(COUNT) // 4
    coin = torch.rand(COUNT // 4, generator=generator) < 0.5
    y = coin[group].long()
    identity = torch.randn(COUNT // 4, 60, generator=generator)
    x = identity[group] + 0.05 * torch.randn(COUNT, 60, generator=generator)  # says which group, and nothing of the label
    path = write(x=x, y=y, group=group)
    grouped = run_analysis("probes.linear", activations=path, method="logistic", online_code=False)
    interval = grouped.facts["test_auroc"]
    assert interval["ci_low"] < 0.5 < interval["ci_high"]
    assert grouped.facts["permuted"].startswith("between groups") and grouped.facts["p_max_t"] > 0.05
    assert grouped.facts["control_accuracy"] > 0.9  # it can memorise any label of these groups, and says so
    leaking = run_analysis("probes.linear", activations=write(x=x, y=y), method="logistic", online_code=False)
    assert leaking.facts["test_auroc"]["value"] > 0.95  # the test could see a leak: without groups it is there


def test_scores_are_judged_as_they_are(run_analysis: Run, write: Write) -> None:
    x, y = rows()
    score = x[:, 0].mul(2).round().div(2)  # with ties
    run = run_analysis("probes.linear", activations=write(score=score, y=y), alpha="1/10")
    assert run.facts["test_auroc"]["value"] == pytest.approx(brute_auroc(score, y), abs=1e-12)
    assert run.facts["method"] == "none" and "probe" not in run.artifacts
    benign = score[y == 0].sort().values
    rank = math.ceil((len(benign) + 1) * 0.9)
    assert run.facts["threshold_rank"] == rank and run.facts["threshold"] == float(benign[rank - 1])


def test_a_threshold_that_needs_more_benign_rows_is_unknown_and_said(run_analysis: Run, write: Write) -> None:
    x, y = rows()
    run = run_analysis("probes.linear", activations=write(score=x[:, 0], y=y), alpha="1/100")
    assert run.facts["threshold"] is None and run.facts["benign"] == 80
    assert "needs 99 benign rows, and there are 80" in (run.folder / "log.txt").read_text()


def test_folds_have_no_threshold_and_rows_held_out_have(run_analysis: Run, write: Write) -> None:
    x, y = rows()
    folds = run_analysis("probes.linear", activations=write(x=x, y=y), method="lda", alpha="1/10", online_code=False)
    assert folds.facts["threshold"] is None and folds.facts["threshold_rank"] == 73 and folds.facts["benign"] == 80
    assert folds.table("layers")["threshold"].to_list() == [None]
    assert "give activations with `test` (1 = held out) to have one" in (folds.folder / "log.txt").read_text()
    test = torch.arange(COUNT) >= 100
    path = write(x=x, y=y, test=test.long())
    held_out = run_analysis("probes.linear", activations=path, method="lda", alpha="1/10", online_code=False)
    probe = held_out.tensors("probe")
    benign = (x[test & (y == 0)].double() @ probe["direction"][0] + probe["bias"][0]).sort().values
    assert held_out.facts["threshold"] == pytest.approx(float(benign[held_out.facts["threshold_rank"] - 1]), abs=1e-9)


def test_of_scores_only_the_rows_held_out_are_judged(run_analysis: Run, write: Write) -> None:
    x, y = rows()
    test = torch.arange(COUNT) >= 100
    run = run_analysis("probes.linear", activations=write(score=x[:, 0], y=y, test=test.long()), alpha="1/10")
    assert run.facts["test_auroc"]["value"] == pytest.approx(brute_auroc(x[test, 0], y[test]), abs=1e-12)
    assert run.facts["judged"] == "as given, held out by the file" and run.facts["judged_rows"] == 60
    assert run.facts["benign"] == 30 and run.table("scores")["row"].to_list() == list(range(100, COUNT))


def test_the_erased_label_is_gone_from_training_rows_and_the_eraser_is_saved(run_analysis: Run, write: Write) -> None:
    x, y = rows(strength=3.0)
    run = run_analysis("probes.linear", activations=write(x=x, y=y), method="lda", erase="leace")
    saved = run.tensors("leace")
    assert saved["P"].shape == (WIDTH, WIDTH) and saved["mean"].shape == (WIDTH,)
    erased = x.double() - (x.double() - saved["mean"]) @ saved["P"].T
    centred = y.double() - y.double().mean()
    assert float(((erased - erased.mean(0)).T @ centred / (COUNT - 1)).abs().max()) < 1e-9
    row = run.table("erasure").row(0, named=True)
    assert row["auroc_before"] > 0.9 and abs(row["train_auroc_after"] - 0.5) < 0.1  # a direction of rounding errors
    assert row["largest_cross_covariance"] < 1e-9


def pairs(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(COUNT, generator=generator) < 0.5
    no = torch.randn(COUNT, WIDTH, generator=generator)
    yes = 3 + 2 * (no + 0.3 * torch.randn(COUNT, WIDTH, generator=generator))
    yes[:, 2] += torch.where(truth, 2.0, -2.0)
    return {"x_yes": yes, "x_no": no, "truth": truth}


@pytest.mark.parametrize("method", ["ccs", "crc-tpc", "lda"])
def test_a_saved_probe_of_pairs_scores_raw_pairs_by_the_formula_of_the_docs(run_analysis: Run, write: Write, method: str) -> None:
    given = pairs()
    test = torch.arange(COUNT) % 4 == 0  # so that the one probe there is has judged rows too
    run = run_analysis("probes.linear", activations=write(**given, test=test.long()), method=method, online_code=False, draws=200)
    probe = {name: values[0] for name, values in run.tensors("probe").items()}
    sides = {side: (given[f"x_{side}"].double() - probe[f"mean_{side}"]) / probe[f"scale_{side}"] for side in ("yes", "no")}
    if method == "ccs":
        p = {side: (values @ probe["direction"] + probe["bias"]).sigmoid() for side, values in sides.items()}
        score = (p["yes"] + 1 - p["no"]) / 2 - 0.5
    else:
        score = (sides["yes"] - sides["no"]) @ probe["direction"] + probe["bias"]
    truth = given["truth"].long()
    assert run.table("scores")["score"].to_list() == pytest.approx(score[test].tolist(), abs=1e-9)
    assert run.table("layers")["train_auroc"][0] == pytest.approx(brute_auroc(score[~test], truth[~test]), abs=1e-12)
    assert run.table("layers")["test_accuracy"][0] == pytest.approx(float(((score > 0) == given["truth"])[test].double().mean()))


@pytest.mark.parametrize(("method", "shown"), [("crc-tpc", "logistic"), ("lda", "lda")])
def test_before_and_after_erasure_are_one_method_on_normalised_differences(
    run_analysis: Run, write: Write, method: str, shown: str
) -> None:
    path, options = write(**pairs()), {"online_code": False, "draws": 200}
    row = run_analysis("probes.linear", activations=path, method=method, erase="leace", **options).table("erasure").row(0, named=True)
    alone = run_analysis("probes.linear", activations=path, method=shown, **options)
    assert row["method"] == shown and row["auroc_before"] == pytest.approx(alone.facts["test_auroc"]["value"], abs=1e-12)
    assert row["auroc_before"] > 0.95 and row["auroc_after"] < 0.7


def test_selectivity_that_cannot_be_computed_is_null_and_said(run_analysis: Run, write: Write) -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([1, 0, 0, 0, 1, 0])  # of the rows to fit on, one is 1: the fold that has it leaves none
    group, test = torch.tensor([0, 0, 2, 1, 2, 2]), torch.tensor([0, 0, 1, 0, 1, 1])
    run = run_analysis("probes.linear", activations=write(x=x, y=y, group=group, test=test), method="lda", online_code=False)
    assert run.status == "done" and run.facts["selectivity"] is None and run.facts["control_accuracy"] is None
    assert "selectivity is unknown" in (run.folder / "log.txt").read_text()


def test_an_unsupervised_method_that_finds_the_distractor_says_so(run_analysis: Run, write: Write) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(COUNT, generator=generator) < 0.5
    no = torch.randn(COUNT, WIDTH, generator=generator)
    yes = no + 0.3 * torch.randn(COUNT, WIDTH, generator=generator)
    yes[:, 2] += torch.where(truth, 1.0, -1.0)
    run = run_analysis("probes.linear", activations=write(x_yes=yes, x_no=no, truth=truth), method="crc-tpc", online_code=False)
    assert run.facts["test_auroc"]["value"] > 0.95
    table = {(row["method"], row["pairs"]): row for row in run.table("distractor").iter_rows(named=True)}
    assert table["crc-tpc", "distractor planted"]["auroc_distractor"] > 0.95
    assert table["crc-tpc", "distractor planted"]["auroc_truth"] < 0.75
    assert table["logistic", "distractor planted"]["auroc_truth"] > 0.95  # it is still there for who sees the labels


def test_a_layer_that_is_not_finite_is_unknown_and_the_others_are_not(run_analysis: Run, write: Write) -> None:
    x, y = rows(layers=3)
    x[4, 1, 2] = float("inf")
    run = run_analysis("probes.linear", activations=write(x=x, y=y), method="difference-of-means", online_code=False)
    aurocs = run.table("layers")["test_auroc"].to_list()
    assert aurocs[1] is None and aurocs[2] > 0.8
    assert "NaN or infinity in 1 of 3 layers" in (run.folder / "log.txt").read_text()
    x[:, :, 0] = float("nan")
    nothing = run_analysis("probes.linear", activations=write(x=x, y=y), method="difference-of-means")
    assert nothing.facts["test_auroc"]["value"] is None and nothing.status == "done"


def test_labels_without_meaning_cover_chance(run_analysis: Run, write: Write) -> None:
    x, y = rows(strength=0.0, seed=5)
    run = run_analysis("probes.linear", activations=write(x=x, y=y), method="logistic")
    assert run.facts["test_auroc"]["ci_low"] < 0.5 < run.facts["test_auroc"]["ci_high"]
    assert run.facts["compression"] < 1.05


def test_prompts_of_a_checkpoint_are_read_and_fitted(run_analysis: Run, tiny_lm: Path, tmp_path: Path) -> None:
    file = tmp_path / "eval.jsonl"
    texts = [f"write {word} in {year}" for year in (2024, 2022) for word in ("code", "soup", "rain", "list", "story", "sorting")]
    file.write_text("".join(json.dumps({"prompt": text, "label": int("2024" in text), "group": text[:9]}) + "\n" for text in texts))
    run = run_analysis("probes.linear", tiny_lm, eval=str(file), method="difference-of-means", online_code=False)
    assert run.table("layers").height == 3 and run.json("probe")["layers"] == [0, 1, 2]
    assert run.tensors("probe")["direction"].shape == (3, 16)


@pytest.mark.parametrize(
    ("tensors", "options", "sentence", "code"),
    [
        ({"x": torch.zeros(8, 2)}, {}, "it needs x and y, score and y, or x_yes, x_no and truth", 3),
        ({"x": torch.zeros(8, 2), "y": torch.ones(8)}, {}, "every y is 1", 3),
        ({"x": torch.zeros(8, 2), "y": torch.arange(8)}, {}, "y holds 2", 3),
        ({"x": torch.zeros(3, 2), "y": torch.tensor([0, 1, 1])}, {}, "has 3 rows; 4 are the least", 3),
        ({"x": torch.zeros(7, 2), "y": torch.arange(8) % 2}, {}, "x has 7 rows, and y has 8", 3),
        ({"x": torch.zeros(8, 2, 3, 4), "y": torch.arange(8) % 2}, {}, "of shape .n, d. or .n, layer, d.", 3),
        ({"x": torch.zeros(8, 2), "y": torch.arange(8) % 2, "test": torch.zeros(8)}, {}, "hold nothing", 3),
        ({"x": torch.zeros(8, 2), "y": torch.arange(8) % 2, "group": torch.zeros(8)}, {}, "one whole number a row", 3),
        ({"x": torch.zeros(8, 2), "y": torch.tensor(1)}, {}, r"y has shape \(\); it is one number a row", 3),
        ({"x": torch.tensor(0.0), "y": torch.arange(8) % 2}, {}, "x is a single number, and y has 8 rows", 3),
        ({"x": torch.zeros(8, 2), "y": torch.arange(8) % 2, "group": torch.tensor(1)}, {}, "group is a single number", 3),
        ({"x": torch.zeros(8, 2), "y": torch.arange(8) % 2, "test": torch.tensor(1)}, {}, "test is a single number", 3),
        (
            {"x": torch.zeros(8, 2), "y": torch.arange(8) % 2, "group": torch.zeros(8).long()},
            {},
            "labelled 1 are in 1 of 1 groups, and 5 grouped folds leave a probe without them",
            3,
        ),
        (
            {"x": torch.zeros(8, 2), "y": (torch.arange(8) < 3).long(), "group": torch.arange(8) // 3},
            {"folds": 3},
            "labelled 1 are in 1 of 3 groups, and 3 grouped folds",
            3,
        ),
        (
            {
                "x": torch.zeros(8, 2),
                "y": torch.arange(8) % 2,
                "test": torch.arange(8) // 4,
                "group": torch.tensor([5, 5, 9, 7, 7, 9, 6, 6]),
            },
            {},
            r"group 7 has rows held out .* as have 2 of 4 groups, which leaks; give all rows of a group the same test, or leave test out",
            3,
        ),
        (
            {"score": torch.zeros(8), "y": torch.arange(8) % 2, "test": torch.arange(8) // 4, "group": torch.arange(8) % 4},
            {},
            "group 0 has rows held out .* as have 4 of 4 groups",
            3,
        ),
        ({"x": torch.zeros(8, 2), "y": torch.arange(8) % 2}, {"method": "ccs"}, "needs pairs: x_yes, x_no and truth", 2),
    ],
)
def test_a_bad_file_is_a_sentence(run_analysis: Run, write: Write, tensors: dict, options: dict, sentence: str, code: int) -> None:  # type: ignore[type-arg]
    with pytest.raises(RunFailed, match=sentence) as failed:
        run_analysis("probes.linear", activations=write(**tensors), **options)
    assert failed.value.exit_code == code


def test_neither_file_nor_both_are_refused_before_anything_runs(run_analysis: Run, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="either --activations FILE or --eval FILE") as failed:
        run_analysis("probes.linear")
    assert failed.value.exit_code == 2
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(RunFailed, match=r"activations are a \.safetensors file"):
        run_analysis("probes.linear", activations=str(tmp_path / "a.pt"))
