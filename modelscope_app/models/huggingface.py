"""Models of the transformers library, built without running anything a checkpoint brings.

The module is made from config.json on torch's meta device and filled by `loading`, which costs less time than
`from_pretrained` and keeps private copies. transformers' own rules decide which tensor goes where. Architectures whose
stored tensors have to be merged, split or transposed first (most mixtures of experts), and those that keep some modules in
float32, are filled by `from_pretrained` itself; the model's notes say so. Nothing is looked up on a network, and from
config.json no code, kernel or quantiser is accepted.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from modelscope_app.api import BadInput, Checkpoint
from modelscope_app.models.built import ModelKind
from modelscope_app.models.loading import Loaded, load_weights, named, put, unsaved_buffers
from modelscope_app.models.stored_values import shard_path

CODE_KEYS = frozenset(
    {"auto_map", "attn_implementation", "experts_implementation", "fusion_config", "custom_pipelines", "custom_generate", "use_kernels"}
)
"""Keys of config.json that could bring code: classes of the checkpoint's own, or kernels fetched by name."""

HEADS_LEFT_OUT = re.compile(
    r"(^|\.)(pooler|score|classifier|qa_outputs|v_head|lm_head|vocab_[a-z_]+|generator_lm_head)\.|^cls\.|\.inv_freq$"
)
"""Stored tensors a model may do without: the heads of another task, and what older versions saved of buffers."""

STORED_AS_BUILT = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "phi", "phi3"})
"""Types whose checkpoints have always named tensors as the module does. transformers takes long to draw up its renamings."""

_MOST_LAYERS = 2000


class HuggingFaceModel(NamedTuple):
    """A filled transformers model."""

    module: nn.Module
    kind: ModelKind
    """`causal-lm`, `masked-lm` or `encoder`."""
    loaded: Loaded


def is_native(model_type: str) -> bool:
    """Whether transformers itself knows this model type."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def huggingface_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> HuggingFaceModel:
    """Build and fill the model that config.json describes. Raises BadInput where the two do not fit."""
    config = config_of(checkpoint)
    model_class, kind = model_class_of(config, checkpoint)
    if model_class.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()  # the text half of a model that also sees or hears
    with _quiet_transformers() as log:
        module = _empty_module(model_class, config, dtype, checkpoint)
        renamings, needs_conversion = _renamings(module)
        if needs_conversion or _keeps_float32(module, dtype):
            reason = "its stored tensors are merged or reordered" if needs_conversion else "parts of it stay in float32"
            note = f"{checkpoint.name}: filled by transformers' own loader, because {reason}"
            return HuggingFaceModel(_filled_by_transformers(model_class, config, checkpoint, dtype, device, log), kind, Loaded([note], []))
        stored_names = _stored_names(module, checkpoint, renamings, kind)
        loaded = load_weights(module, checkpoint, stored_names, dtype, device)
        _fill_buffers(module, checkpoint, device)
    return HuggingFaceModel(module, kind, loaded)


def config_of(checkpoint: Checkpoint) -> Any:
    """The transformers config of a checkpoint, with every key that could bring code left out."""
    from transformers import CONFIG_MAPPING

    raw = checkpoint.config or {}
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method") if isinstance(raw["quantization_config"], Mapping) else None
        raise BadInput(
            f"{checkpoint.name}: config.json says the weights are quantised ({method or 'quantization_config'});"
            " no model is built from them here, use the unquantised checkpoint"
        )
    model_type = str(raw.get("model_type"))
    try:
        config = CONFIG_MAPPING[model_type].from_dict(_without_code(raw))
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    except Exception as error:
        # Whatever transformers raises on a wrong value, the file is at fault.
        raise BadInput(f"{checkpoint.name}: config.json is no valid {model_type} configuration: {_first_line(error)}") from error
    if isinstance(layers, int) and layers > max(_MOST_LAYERS, len(checkpoint.tensors)):
        raise BadInput(f"{checkpoint.name}: config.json asks for {layers} layers, and there are {len(checkpoint.tensors)} tensors")
    return config


def _without_code(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if key not in CODE_KEYS and not str(key).startswith("_")}
        return {key: _without_code(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without_code(item) for item in value]
    return value


def model_class_of(config: Any, checkpoint: Checkpoint) -> tuple[Any, ModelKind]:
    """The transformers class that `architectures` in config.json names, and its kind.

    Without that key it is the language model of the type, else its plain encoder. Raises BadInput for another task's class.
    """
    from transformers.models.auto import modeling_auto

    tables: dict[ModelKind, Any] = {
        "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
        "encoder": modeling_auto.MODEL_MAPPING,
    }
    offered: dict[str, tuple[Any, ModelKind]] = {}
    for kind, table in tables.items():
        found = table.get(type(config), ())
        for model_class in found if isinstance(found, tuple | list) else (found,):
            if model_class is not None and "input_ids" in inspect.signature(model_class.forward).parameters:
                offered.setdefault(model_class.__name__, (model_class, kind))
    wanted = (checkpoint.config or {}).get("architectures")
    names = [name for name in wanted if isinstance(name, str)] if isinstance(wanted, list) else []
    for name in names:
        if name in offered:
            return offered[name]
    if names or not offered:
        choices = f"; of this type these are: {', '.join(offered)}" if offered else ""
        raise BadInput(
            f"{checkpoint.name}: {', '.join(names) or config.model_type} in config.json is no language model or text encoder"
            f" mscope builds{choices}"
        )
    return next(iter(offered.values()))


def _empty_module(model_class: Any, config: Any, dtype: torch.dtype, checkpoint: Checkpoint) -> nn.Module:
    try:
        with torch.device("meta"):
            module: nn.Module = model_class._from_config(config, dtype=dtype)
            return module.eval()
    except Exception as error:
        raise BadInput(
            f"{checkpoint.name}: transformers cannot build {model_class.__name__} from config.json: {_first_line(error)}"
        ) from error


def _renamings(module: Any) -> tuple[list[Any], bool]:
    """transformers' renamings of stored tensors for this model, and whether values have to be converted as well."""
    if module.config.model_type in STORED_AS_BUILT:
        return [], False
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    transforms = get_model_conversion_mapping(module)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    return renamings, len(renamings) < len(transforms)


def _keeps_float32(module: Any, dtype: torch.dtype) -> bool:
    kept = module._keep_in_fp32_modules_strict or (module._keep_in_fp32_modules and dtype == torch.float16)
    return bool(kept) and dtype in (torch.float16, torch.bfloat16)


def _stored_names(module: Any, checkpoint: Checkpoint, renamings: list[Any], kind: ModelKind) -> dict[str, str]:
    """Names in the checkpoint by state-dict name. Raises BadInput naming tensors that have no place in the model."""
    from transformers.core_model_loading import rename_source_key

    expected = module.state_dict()
    stored_names: dict[str, str] = {}
    unexpected = []
    for stored in checkpoint.tensors:
        name, _ = rename_source_key(stored, renamings, [], module.base_model_prefix, expected)
        if name not in expected and stored in expected:
            name = stored
        if name in stored_names:
            raise BadInput(f"{checkpoint.name}: {stored_names[name]} and {stored} are the same tensor to this architecture")
        if name in expected:
            stored_names[name] = stored
        else:
            unexpected.append(name)
    _refuse_unexpected(module, unexpected, checkpoint, kind)
    return stored_names


def _refuse_unexpected(module: Any, names: list[str], checkpoint: Checkpoint, kind: ModelKind) -> None:
    ignored = module._keys_to_ignore_on_load_unexpected or ()
    language_head = re.compile(r"(^|\.)lm_head\.")
    left = [
        name
        for name in names
        if not any(re.search(pattern, name) for pattern in ignored)
        and not re.search(r"(^|\.)position_ids$", name)
        and not (HEADS_LEFT_OUT.search(name) and (kind == "encoder" or not language_head.search(name)))
    ]
    if left:
        raise BadInput(f"{checkpoint.name} holds tensors its config.json has no place for: {named(left)}")


def _fill_buffers(module: Any, checkpoint: Checkpoint, device: torch.device) -> None:
    """Give the buffers no checkpoint stores their values, by the model's own initialisation, which skips all that is filled."""
    buffers = unsaved_buffers(module)
    weights = sum(header.bytes for header in checkpoint.tensors.values())
    size = sum(buffer.numel() * buffer.element_size() for buffer in buffers.values())
    if size > weights + 2**30:
        raise BadInput(f"{checkpoint.name}: config.json asks for {size:,} bytes of buffers beside {weights:,} bytes of weights")
    for value in (*module.state_dict(keep_vars=True).values(),):
        value._is_hf_initialized = True
    for name, buffer in buffers.items():
        fill = float("nan") if buffer.is_floating_point() else 0
        put(module, name, torch.full(buffer.shape, fill, dtype=buffer.dtype, device=device))
    module.initialize_weights()
    unfilled = [name for name, buffer in unsaved_buffers(module).items() if buffer.is_floating_point() and bool(buffer.isnan().any())]
    if unfilled:
        raise BadInput(f"{checkpoint.name}: transformers gives {type(module).__name__} no values for {named(unfilled)}")


def _filled_by_transformers(
    model_class: Any, config: Any, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, log: _Kept
) -> nn.Module:
    from safetensors import SafetensorError, safe_open

    filled: nn.Module
    with ExitStack() as files:
        try:
            shards = {
                shard: files.enter_context(safe_open(shard_path(checkpoint, shard), framework="pt"))
                for shard in {header.shard for header in checkpoint.tensors.values()}
            }
            slices = {name: shards[header.shard].get_slice(name) for name, header in checkpoint.tensors.items()}
            filled, info = model_class.from_pretrained(
                None, config=config, state_dict=slices, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            at_fault = f"stored tensors do not add up to {named(log.tensors())}" if log.tensors() else _first_line(error)
            raise BadInput(f"{checkpoint.name}: transformers cannot fill {model_class.__name__}: {at_fault}") from error
        # Whatever is still a view of a mapped file gets memory of its own.
        for tensor in filled.state_dict(keep_vars=True).values():
            tensor.data = tensor.data.clone()
    if info["missing_keys"]:
        raise BadInput(f"{checkpoint.name} lacks tensors its config.json asks for: {named(sorted(info['missing_keys']))}")
    if info["mismatched_keys"]:
        mismatched = sorted(str(key[0]) for key in info["mismatched_keys"])
        raise BadInput(f"{checkpoint.name} holds tensors of other shapes than config.json asks for: {named(mismatched)}")
    _refuse_unexpected(filled, sorted(info["unexpected_keys"]), checkpoint, "encoder")
    return filled.eval().to(device)


class _Kept(logging.Handler):
    """Keeps what transformers logs, so that its report on tensors can be quoted in an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"

    def tensors(self) -> list[str]:
        """Names the report says are missing or could not be converted."""
        rows = re.findall(r"^(\S+)\s*\|[^|\n]*(?:MISSING|MISMATCH|CONVERSION)", self.text, re.MULTILINE)
        return list(dict.fromkeys(rows))


@contextmanager
def _quiet_transformers() -> Iterator[_Kept]:
    """transformers logs and draws bars on stderr; what matters of it is raised or noted here instead."""
    from transformers.utils import logging as transformers_logging

    logger, bars, kept = logging.getLogger("transformers"), transformers_logging.is_progress_bar_enabled(), _Kept()
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [kept], False
    logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        yield kept
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
