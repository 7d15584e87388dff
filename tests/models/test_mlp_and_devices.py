"""The built-in classifier, and what --device and --dtype take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny_models import batch_of
from safetensors.torch import save_file

from modelscope_app.api import Architecture, BadInput, UsageError
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.models import build_model, resolve_device, resolve_dtype

SIZES = [5, 7, 3]


def mlp(folder: Path, config: dict[str, Any] | None = None, **changes: torch.Tensor | None) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor | None] = {}
    for index, (size, out) in enumerate([(5, 7), (7, 3)]):
        tensors[f"layers.{index}.weight"] = torch.randn(out, size, generator=generator)
        tensors[f"layers.{index}.bias"] = torch.randn(out, generator=generator)
    tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "mlp", "layer_sizes": SIZES, "activation": "tanh", **(config or {})}))
    return folder


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_an_mlp_computes_what_its_tensors_say(tmp_path: Path, activation: str) -> None:
    checkpoint = open_checkpoint(mlp(tmp_path, {"activation": activation}))
    features = torch.randn(4, 5)
    function = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.GELU()}[activation]
    hidden = function(features @ checkpoint.tensor("layers.0.weight").T + checkpoint.tensor("layers.0.bias"))
    expected = hidden @ checkpoint.tensor("layers.1.weight").T + checkpoint.tensor("layers.1.bias")
    model = build_model(checkpoint, device="cpu")
    torch.testing.assert_close(model.module(features), expected)
    assert model.memory_bytes == 4 * (5 * 7 + 7 + 7 * 3 + 3)


def test_an_mlp_in_another_dtype_takes_float32_features(tmp_path: Path) -> None:
    model = build_model(open_checkpoint(mlp(tmp_path)), device="cpu", dtype="float64")
    assert model.module(torch.randn(2, 5)).dtype == torch.float64


def test_an_mlp_refuses_what_only_token_models_do(tmp_path: Path) -> None:
    model = build_model(open_checkpoint(mlp(tmp_path)), device="cpu")
    with pytest.raises(BadInput, match="classifies features: it has no next-token logits"):
        model.logits(batch_of([[1, 2]]))
    with pytest.raises(BadInput, match="a model of type mlp has no body"):
        model.body(batch_of([[1, 2]]))
    with pytest.raises(BadInput, match="mlp: no list of layers was found"):
        _ = model.sites


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"layer_sizes": None}, "needs layer_sizes"),
        ({"layer_sizes": [5]}, "needs layer_sizes"),
        ({"layer_sizes": [5, float("nan"), 3]}, "must be whole numbers from 1"),
        ({"layer_sizes": [5, True, 3]}, "must be whole numbers from 1"),
        ({"layer_sizes": [5, 0, 3]}, "must be whole numbers from 1"),
        ({"activation": "sigmoid"}, "must be one of tanh, relu, gelu, not 'sigmoid'"),
        ({"activation": ["tanh"]}, "must be one of tanh, relu, gelu"),
        ({"layer_sizes": [5, 8, 3]}, r"layers\.0\.bias has shape \(7,\) where config\.json asks for \(8,\)"),
        ({"layer_sizes": [5, 7, 3, 2]}, r"lacks tensors its config\.json asks for: layers\.2\.weight"),
        ({"layer_sizes": [5, 7]}, r"no place for: layers\.1\."),
        ({"layer_sizes": [10**9, 10**9]}, "no place for"),
    ],
)
def test_an_mlp_whose_config_is_wrong_is_refused_by_name(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        build_model(open_checkpoint(mlp(tmp_path, config)), device="cpu")


def test_a_plugin_may_not_take_the_built_in_type(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="mlp is built by mscope itself; mine:build needs another model_type"):
        build_model(open_checkpoint(mlp(tmp_path)), device="cpu", architectures=[Architecture("mlp", "mine:build")])


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cuda:", "cuda:x", "cuda:-1", "mps", "CPU", ""):
        with pytest.raises(UsageError, match="write auto, cpu, cuda or cuda:N"):
            resolve_device(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_said_to_be_missing() -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UsageError, match=f"--device {name}: .*use --device cpu"):
            resolve_device(name)


def test_dtypes_by_name() -> None:
    assert resolve_dtype("auto") is None
    assert resolve_dtype("bf16") is resolve_dtype("bfloat16") is torch.bfloat16
    assert resolve_dtype("fp32") is resolve_dtype("float32") is torch.float32
    assert resolve_dtype("float64") is torch.float64
    for wrong in ("int8", "float8_e4m3fn", "Float32", ""):
        with pytest.raises(UsageError, match="write auto or one of"):
            resolve_dtype(wrong)
