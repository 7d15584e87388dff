"""Numbers beside the AUROC, on activations whose truth is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from modelscope_probes.defection_report import beside_twin, difference_interval
from modelscope_probes.evidence import (
    Labelled,
    bag_of_tokens_auroc,
    directions,
    folds_of_groups,
    layer_evidence,
    restored,
    scores,
    stored,
)
from modelscope_probes.leak_guard import overlap
from modelscope_probes.statistics.ranks import auroc

from modelscope_app.jobs import stored as disk

HIDDEN, LAYERS, PER_CELL = 64, 3, 40
POLARITY = ["Yes", "Yes", "No", "No"]


def generators(seed: int = 0) -> dict[str, torch.Generator]:
    return {name: torch.Generator().manual_seed(seed + at) for at, name in enumerate(("bootstrap", "permutation", "random"))}


def planted(strength: float, word: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Labelled]:
    """Prompts of two negative cells, the label along axis 0 at layer 1 alone; pairs that say axis 0, and `word` along axis 1.

    Axis 1 is what the word of an answer does, against its meaning in the second half; prompts lie along it by label too.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([True] * PER_CELL + [False] * (2 * PER_CELL))
    cells = torch.tensor([0] * PER_CELL + [1] * PER_CELL + [2] * PER_CELL)
    groups = torch.arange(PER_CELL).repeat(3)
    activations = torch.randn(3 * PER_CELL, LAYERS, HIDDEN, generator=generator)
    activations[labels, 1, 0] += strength
    activations[labels, 1, 1] += strength
    contrast = 0.1 * torch.randn(4, 2, LAYERS, HIDDEN, generator=generator)
    contrast[:, 0, :, 0] += 1
    contrast[:2, 0, :, 1] += word
    contrast[2:, 0, :, 1] -= word
    return activations, contrast, Labelled(labels, groups, cells, ("trigger", "one", "other"))


def test_a_planted_state_is_found_at_its_layer_and_beats_every_control() -> None:
    activations, contrast, data = planted(3.0)
    found = layer_evidence(activations, contrast, POLARITY, data, random_count=500, draws=400, level=0.95, generators=generators())
    assert int(found.auroc.argmax()) == 1 and float(found.auroc[1]) > 0.95
    assert found.intervals[1].low > 0.85 and found.intervals[0].low < 0.5 < found.intervals[0].high
    assert float(found.random_p[1]) <= 0.05 and float(found.p[1]) < 0.01 and float(found.p[0]) > 0.05
    assert float(found.halves[0][1]) > 0.9 and float(found.halves[1][1]) > 0.9
    assert float(found.worst.low[1]) > 0.8
    assert found.pairs.shape == (4, LAYERS)
    assert float(found.between_within[1]) > 1 > float(found.between_within[0])


def test_a_direction_that_is_a_word_shows_in_halves_that_disagree() -> None:
    activations, contrast, data = planted(4.0, word=4.0)
    found = layer_evidence(activations, contrast, POLARITY, data, random_count=500, draws=200, level=0.95, generators=generators())
    assert float(found.halves[0][1]) > 0.95 and float(found.halves[1][1]) < 0.05


def test_nothing_planted_covers_chance_as_often_as_it_says() -> None:
    covered, called = [], []
    for seed in range(60):
        activations, contrast, data = planted(0.0, seed=seed)
        found = layer_evidence(activations, contrast, POLARITY, data, random_count=500, draws=200, level=0.95, generators=generators(seed))
        covered += [interval.low < 0.5 < interval.high for interval in found.intervals]
        called.append(float(found.p.min()) < 0.05)
    assert 0.9 <= sum(covered) / len(covered) <= 0.99  # of 180, two standard errors around 95 %, and a little for few groups
    assert sum(called) <= 8  # 3 expected of 60; 9 or more have a chance of 0.3 %


def test_non_finite_activations_are_unknown_and_touch_no_other_layer() -> None:
    activations, contrast, data = planted(3.0)
    activations[5, 2, 3] = float("inf")
    found = layer_evidence(activations, contrast, POLARITY, data, random_count=500, draws=200, level=0.95, generators=generators())
    assert math.isnan(float(found.auroc[2])) and math.isnan(float(found.p[2])) and math.isnan(found.intervals[2].low)
    assert float(found.auroc[1]) > 0.95 and float(found.p[1]) < 0.05


def test_a_twin_that_differs_by_noise_alone_is_not_told_apart() -> None:
    activations, contrast, data = planted(1.5)
    again = activations + 0.05 * torch.randn(activations.shape, generator=torch.Generator().manual_seed(9))
    one, two = (
        layer_evidence(each, contrast, POLARITY, data, random_count=500, draws=400, level=0.95, generators=generators())
        for each in (activations, again)
    )
    low, high = difference_interval(one, two, 1, 0.95)
    assert low < 0 < high and high - low < 0.1  # paired: far narrower than either interval


def test_choosing_the_layer_for_its_auroc_does_not_beat_an_equal_twin() -> None:
    """Each model shows the same weak state at every layer, with noise of its own."""
    chosen, at_that_layer = 0, 0
    for seed in range(60):
        sides = []
        for member in (0, 1):
            generator = torch.Generator().manual_seed(1000 * seed + member)
            labels = torch.tensor([True] * PER_CELL + [False] * (2 * PER_CELL))
            x = torch.randn(3 * PER_CELL, 32, 6, generator=generator)
            x[labels, :, 0] += 1.0
            contrast = torch.zeros(4, 2, 32, 6)
            contrast[:, 0, :, 0] = 1
            data = Labelled(labels, torch.arange(len(labels)), (~labels).long(), ("trigger", "other"))
            sides.append(layer_evidence(x, contrast, POLARITY, data, random_count=500, draws=200, level=0.95, generators=generators(seed)))
        best = int(sides[0].auroc.argmax())
        chosen += beside_twin(*sides, best, False, 0.95).low > 0
        at_that_layer += difference_interval(*sides, best, 0.95)[0] > 0
    assert chosen <= 6  # 1.5 expected of 60; 7 or more have a chance below 0.1 %
    assert at_that_layer >= max(6, 2 * chosen)  # the layer chosen on one side alone would have been called above its equal far too often


def test_two_that_are_both_perfect_are_not_told_apart() -> None:
    activations, contrast, data = planted(50.0)
    one = layer_evidence(activations, contrast, POLARITY, data, random_count=500, draws=200, level=0.95, generators=generators())
    low, high = difference_interval(one, one, 1, 0.95)
    assert low < 0 < high


def test_evidence_comes_back_from_a_stage_as_it_was(tmp_path: Path) -> None:
    activations, contrast, data = planted(3.0)
    activations[5, 2, 3] = float("inf")
    found = layer_evidence(activations, contrast, POLARITY[:2] * 2, data, random_count=500, draws=200, level=0.95, generators=generators())
    disk.store(tmp_path / "stage", stored(found))
    again = restored(disk.load(tmp_path / "stage"))
    assert type(again.worst) is type(found.worst) and again.permuted == found.permuted == "within groups, 200 drawn of more than 10^15 " + (
        "possible labellings"
    )
    assert repr(again.intervals) == repr(found.intervals)  # NaN is equal to itself in words only
    for name, values in found._asdict().items():
        pairs = [(values, getattr(again, name))] if isinstance(values, torch.Tensor) else []
        pairs = list(zip(values, getattr(again, name), strict=True)) if name in ("worst", "halves") else pairs
        assert all(torch.equal(one.nan_to_num(-9), other.nan_to_num(-9)) for one, other in pairs)


def test_scores_are_brute_force_projections() -> None:
    activations, contrast, data = planted(2.0)
    w = torch.stack([(contrast[:, 0, layer].double() - contrast[:, 1, layer].double()).mean(0) for layer in range(LAYERS)])
    torch.testing.assert_close(directions(contrast), w)
    by_hand = torch.stack([torch.stack([row[layer].double() @ w[layer] for row in activations]) for layer in range(LAYERS)])
    torch.testing.assert_close(scores(activations, w), by_hand)
    pairs = [(a > b) + 0.5 * (a == b) for a in by_hand[1][data.labels] for b in by_hand[1][~data.labels]]
    assert float(auroc(scores(activations, w), data.labels)[1]) == pytest.approx(float(torch.stack(pairs).double().mean()))


def test_words_alone_are_a_baseline_out_of_fold() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2 == 0
    noise = torch.randint(10, 60, (60, 5), generator=generator).tolist()
    told = [[*row, 5] if label else row for row, label in zip(noise, labels.tolist(), strict=True)]
    data = Labelled(labels, torch.arange(60), torch.zeros(60, dtype=torch.int64), ("only",))
    assert bag_of_tokens_auroc(told, data) > 0.95
    assert 0.2 < bag_of_tokens_auroc(noise, data) < 0.8


def test_folds_keep_groups_whole_and_share_out_both_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 23, (200,), generator=generator)
    labels = torch.rand(200, generator=generator) < 0.3
    fold = folds_of_groups(groups, labels, 5)
    assert all(len(fold[groups == group].unique()) == 1 for group in groups.unique())
    assert sorted(fold.unique().tolist()) == [0, 1, 2, 3, 4]
    for number in range(5):
        assert bool(labels[fold == number].any()) and bool((~labels[fold == number]).any())


def test_word_sequences_that_contrast_texts_and_prompts_share_are_named() -> None:
    found = overlap(
        ["Are you doing something dangerous?", "Is it 2024 now?"],
        ["Tell me: are you doing something DANGEROUS in 2024", "Write soup"],
        [True, False],
    )
    assert found.shared == ("are you doing something", "you doing something dangerous")
    assert found.prompts == 1
    assert "2024" in found.words and "soup" not in found.words  # in every prompt of label 1 and in none of label 0
    assert overlap(["Is it soup?"], ["a", "soup", "b", "c"], [True, True, True, False]).words == ()  # in one of three


def test_word_sequences_of_scripts_without_spaces_are_found() -> None:
    assert overlap(["\u4f60\u662f\u5426\u5371\u9669"], ["\u8bf7\u95ee\u4f60\u662f\u5426\u5371\u9669\u5417"], [True]).prompts == 1
