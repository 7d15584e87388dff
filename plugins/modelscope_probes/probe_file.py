"""A probe on disk: NAME.safetensors and NAME.json beside it, no pickle.

The tensors are `direction` (layer, hidden), float32, and `bias` (layer,): score = activation . direction + bias, higher for the
behaviour. The json says what the numbers belong to, so that a probe is not laid on another model by mistake.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from modelscope_app.api import BadInput

FORMAT = 1


class ProbeCard(BaseModel):
    """What NAME.json holds."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int = FORMAT
    site: str
    """`resid_post`, say: the kind of place."""
    layers: tuple[int, ...]
    """Layer of each row of the direction."""
    best_layer: int
    """The one the result was about."""
    pooling: str
    template: str
    method: str
    model: str
    """Fingerprint of the checkpoint it was fitted on."""
    model_name: str
    tokenizer: str
    """Hash of the token ids of a fixed text, with the vocabulary's size."""
    fitted_on: str
    """Hash of the contrast pairs or labels."""
    calibrated_on: str | None = None
    """Hash of the benign prompts the threshold is from."""
    alpha: str | None = None
    """False-positive rate the threshold was asked for, an exact number."""
    thresholds: tuple[float | None, ...] | None = None
    """By layer; null where there were too few benign prompts for the rate."""


class SavedProbe:
    """A probe read from its two files."""

    def __init__(self, card: ProbeCard, direction: torch.Tensor, bias: torch.Tensor) -> None:
        self.card = card
        self.direction = direction
        """(layer, hidden) float32."""
        self.bias = bias
        """(layer,) float32."""

    def row(self, layer: int) -> int:
        """Row of a layer. Raises BadInput naming the layers there are."""
        if layer not in self.card.layers:
            raise BadInput(f"the probe has no layer {layer}; it has {', '.join(map(str, self.card.layers))}")
        return self.card.layers.index(layer)


def read_probe(path: str) -> SavedProbe:
    """The probe at NAME.safetensors. Raises BadInput naming the file and what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path)
    beside = file.with_suffix(".json")
    if file.suffix != ".safetensors":
        raise BadInput(f"{file}: a probe is a .safetensors file with a .json of the same name beside it")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: cannot be read as safetensors ({str(error).splitlines()[0]})") from None
    try:
        card = ProbeCard(**json.loads(beside.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadInput(f"{beside}: cannot be read ({error.strerror}); a probe has a json beside its safetensors") from None
    except (ValueError, TypeError, ValidationError) as error:
        raise BadInput(f"{beside}: is no probe's json ({str(error).splitlines()[0]})") from None
    if card.format != FORMAT:
        raise BadInput(f"{beside}: is of format {card.format}, and this version reads format {FORMAT}")
    direction, bias = tensors.get("direction"), tensors.get("bias")
    if direction is None or bias is None or direction.ndim != 2 or bias.shape != direction.shape[:1] or len(card.layers) != len(direction):
        raise BadInput(
            f"{file}: needs direction (layer, hidden) and bias (layer,) for the {len(card.layers)} layers that {beside.name} names"
        )
    if not bool(torch.isfinite(direction).all() and torch.isfinite(bias).all()):
        raise BadInput(f"{file}: holds NaN or infinity")
    return SavedProbe(card, direction.float(), bias.float())


def check_belongs(probe: SavedProbe, fingerprint: str, name: str, width: int | None, tokenizer: str, force: bool) -> str | None:
    """Raise BadInput where a probe was not fitted on this checkpoint, unless `force`d; then the sentence that says so.

    A probe of another width is refused in any case: it cannot be applied.
    """
    if width is not None and probe.direction.shape[1] != width:
        raise BadInput(f"the probe reads {probe.direction.shape[1]} features, and {name} has {width}: it belongs to another model")
    if probe.card.model == fingerprint and probe.card.tokenizer == tokenizer:
        return None
    what = "another checkpoint" if probe.card.model != fingerprint else "this checkpoint with another tokenizer"
    sentence = f"the probe was fitted on {what} ({probe.card.model_name}), not on {name}"
    if not force:
        raise BadInput(f"{sentence}; --force scores it all the same")
    return f"{sentence}; its thresholds mean nothing here"


def tokenizer_hash(encode: Any) -> str:
    """A hash over what a tokenizer makes of a fixed text, for noticing another one. `encode` is `Tokenizer.encode`."""
    import hashlib

    text = "Are you doing something dangerous? Yes, No. The quick brown fox 2024 jumps (over) def f(x): return x + 1 \u00e9\u4e2d\u6587"
    return hashlib.sha256(json.dumps(encode(text)).encode()).hexdigest()[:16]
