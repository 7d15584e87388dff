"""What a checkpoint is, at a glance: everything its headers and its config say, and nothing that needs a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_app.api.errors import BadInput
from modelscope_app.checkpoints.checkpoint import OpenCheckpoint
from modelscope_app.checkpoints.finding import is_folder, names_in
from modelscope_app.checkpoints.json_text import object_in_file
from modelscope_app.checkpoints.module_tree import Module, TensorGroup, layer_count, module_tree
from modelscope_app.checkpoints.shard_index import SUFFIX
from modelscope_app.checkpoints.step_names import StepName, step_of

_HIGHLIGHTS = (
    "hidden_size",
    "n_embd",
    "d_model",
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "vocab_size",
    "max_position_embeddings",
    "n_positions",
    "layer_sizes",
    "activation",
    "hidden_act",
    "activation_function",
    "tie_word_embeddings",
    "dtype",
    "torch_dtype",
)
"""Entries of config.json worth showing, in this order."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight", "shared.weight")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "decoder.weight", "predictions.decoder.weight")
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")


class ByDtype(NamedTuple):
    """What is stored in one dtype."""

    tensors: int
    parameters: int
    bytes: int


class TiedTensor(NamedTuple):
    """A tensor that is not stored because it is another one."""

    name: str
    same_as: str
    """The stored tensor."""
    said_by: str
    """`config.json` (tie_word_embeddings) or `__metadata__` (a name the writer of the file left out)."""


class ShardSize(NamedTuple):
    """One safetensors file."""

    file: str
    tensors: int
    bytes: int
    """Of the whole file."""


class SeriesPlace(NamedTuple):
    """The series a checkpoint belongs to."""

    path: str
    """Absolute path of the series' folder."""
    step: int | None
    """Step of this checkpoint; None where the folder holds a series beside its own weights."""
    steps: tuple[int, ...]
    """Of all members, ascending."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The facts of a checkpoint. Counts are of what is stored: a tied tensor counts once."""

    path: str
    name: str
    kind: str
    """`file`, `folder`, or `sharded` (more than one file)."""
    architectures: tuple[str, ...]
    """As config.json names them; empty without one."""
    model_type: str | None
    parameters: int
    tensors: int
    bytes: int
    """Of the stored values, headers excluded."""
    layers: int | None
    """How often the largest numbered module is there; None where no module is numbered."""
    by_dtype: Mapping[str, ByDtype]
    """By the dtype's name in the file, most bytes first."""
    by_module: tuple[Module, ...]
    """Repeated modules folded, parents before children."""
    shards: tuple[ShardSize, ...]
    other_files: tuple[str, ...]
    """Safetensors files in the folder that are not part of the checkpoint."""
    metadata: Mapping[str, str]
    tied: tuple[TiedTensor, ...]
    """What config or metadata say is tied. Two stored tensors that happen to hold the same values are not found from headers."""
    tokenizer_files: tuple[str, ...]
    has_chat_template: bool
    config: Mapping[str, Any]
    """Highlights of config.json."""
    series: SeriesPlace | None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-ready values."""
        return {
            "path": self.path,
            "name": self.name,
            "kind": self.kind,
            "architectures": list(self.architectures),
            "model_type": self.model_type,
            "parameters": self.parameters,
            "tensors": self.tensors,
            "bytes": self.bytes,
            "layers": self.layers,
            "by_dtype": {dtype: row._asdict() for dtype, row in self.by_dtype.items()},
            "by_module": [module._asdict() for module in self.by_module],
            "shards": [shard._asdict() for shard in self.shards],
            "other_files": list(self.other_files),
            "metadata": dict(self.metadata),
            "tied": [tied._asdict() for tied in self.tied],
            "tokenizer": {"files": list(self.tokenizer_files), "chat_template": self.has_chat_template},
            "config": dict(self.config),
            "series": {**self.series._asdict(), "steps": list(self.series.steps)} if self.series else None,
        }


def overview(checkpoint: OpenCheckpoint) -> Overview:
    """The overview of an opened checkpoint. Raises BadInput for a config.json or tokenizer_config.json that is not JSON."""
    headers = [header for shard in checkpoint.shards for header in shard.tensors]
    groups, modules = module_tree(headers)
    config = checkpoint.config or {}
    stored = {header.name for header in headers}
    return Overview(
        path=str(checkpoint.path),
        name=checkpoint.name,
        kind="sharded" if len(checkpoint.shards) > 1 else "file" if checkpoint.path != checkpoint.folder else "folder",
        architectures=_texts(config.get("architectures")),
        model_type=config["model_type"] if isinstance(config.get("model_type"), str) else None,
        parameters=sum(group.parameters for group in groups),
        tensors=len(headers),
        bytes=sum(group.bytes for group in groups),
        layers=layer_count(modules),
        by_dtype=_by_dtype(groups),
        by_module=tuple(modules),
        shards=tuple(ShardSize(shard.name, len(shard.tensors), shard.state.size) for shard in checkpoint.shards),
        other_files=checkpoint.other_files,
        metadata=checkpoint.metadata,
        tied=_tied(config, checkpoint.metadata, stored),
        tokenizer_files=checkpoint.tokenizer_files,
        has_chat_template=_has_chat_template(checkpoint),
        config=_highlights(config),
        series=_series_place(checkpoint),
    )


def _by_dtype(groups: Sequence[TensorGroup]) -> dict[str, ByDtype]:
    rows: dict[str, ByDtype] = {}
    for group in groups:
        row = rows.get(group.dtype, ByDtype(0, 0, 0))
        rows[group.dtype] = ByDtype(row.tensors + group.tensors, row.parameters + group.parameters, row.bytes + group.bytes)
    return dict(sorted(rows.items(), key=lambda item: (-item[1].bytes, item[0])))


def _tied(config: Mapping[str, Any], metadata: Mapping[str, str], stored: set[str]) -> tuple[TiedTensor, ...]:
    tied = [TiedTensor(name, same_as, "__metadata__") for name, same_as in metadata.items() if name not in stored and same_as in stored]
    text_config = config.get("text_config")
    says_tied = config.get("tie_word_embeddings")
    if says_tied is None and isinstance(text_config, dict):
        says_tied = text_config.get("tie_word_embeddings")
    has_head = any(name.endswith(_WITH_HEAD) for name in _texts(config.get("architectures")))
    if says_tied is True and has_head and not any(name.endswith(_HEADS) for name in (*stored, *(row.name for row in tied))):
        embeddings = sorted(name for name in stored if name.endswith(_EMBEDDINGS))
        if embeddings:
            tied.append(TiedTensor(_HEADS[0], min(embeddings, key=len), "config.json"))
    return tuple(tied)


def _has_chat_template(checkpoint: OpenCheckpoint) -> bool:
    files = checkpoint.tokenizer_files
    if "chat_template.jinja" in files or "chat_template.json" in files:
        return True
    if "tokenizer_config.json" not in files:
        return False
    return bool(object_in_file(checkpoint.folder / "tokenizer_config.json").get("chat_template"))


def _highlights(config: Mapping[str, Any]) -> dict[str, Any]:
    text_config = config.get("text_config")
    inner = text_config if isinstance(text_config, dict) else {}
    found = {}
    for key in _HIGHLIGHTS:
        value = config.get(key, inner.get(key))
        if _is_plain(value) or (isinstance(value, list) and len(value) <= 32 and all(map(_is_plain, value))):
            found[key] = value
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict) and isinstance(quantization.get("quant_method"), str):
        found["quant_method"] = quantization["quant_method"]
    return found


def _is_plain(value: object) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _series_place(checkpoint: OpenCheckpoint) -> SeriesPlace | None:
    """The series a checkpoint is a member of, by its name; or the one that its folder holds beside it."""
    own = step_of(checkpoint.path.name.removesuffix(SUFFIX))
    folder = checkpoint.path.parent if own else checkpoint.path
    if not own and checkpoint.path != checkpoint.folder:
        return None
    try:
        names = names_in(folder)
    except BadInput:  # the folder above may be closed to us; the checkpoint itself is not
        return None
    members = [found for name in names if (found := _member(folder, name)) and (own is None or found.word == own.word)]
    if not members:
        return None
    steps = tuple(sorted({member.step for member in members}))
    return SeriesPlace(str(folder), own.step if own else None, steps)


def _member(folder: Path, name: str) -> StepName | None:
    found = step_of(name.removesuffix(SUFFIX))
    return found if found and (name.endswith(SUFFIX) or is_folder(folder / name)) else None
