"""What can be named as a checkpoint, and the sentence for everything that cannot."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from checkpoints.checkpoint_files import ramp, write_shard

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import is_series, open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refusal(path: str | Path) -> str:
    with pytest.raises(BadInput) as raised:
        open_checkpoint(path)
    return str(raised.value)


def test_a_file_takes_config_and_tokenizer_from_its_folder(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "weights.safetensors", {"a": ramp(2)})
    (tmp_path / "config.json").write_text('{"model_type": "mlp"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(file)
    assert (checkpoint.path, checkpoint.name, checkpoint.folder) == (file, "weights.safetensors", tmp_path)
    assert checkpoint.config == {"model_type": "mlp"}
    assert checkpoint.tokenizer_files == ("tokenizer.json",)


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "run" / "model.safetensors", {"a": ramp(2)})
    monkeypatch.chdir(tmp_path / "run")
    assert open_checkpoint(".").path == tmp_path / "run"
    assert open_checkpoint(".").name == "run"
    assert open_checkpoint("../run/model.safetensors").path == tmp_path / "run" / "model.safetensors"


def test_a_home_folder_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_shard(tmp_path / "m" / "model.safetensors", {"a": ramp(2)})
    assert open_checkpoint("~/m").path == tmp_path / "m"


@pytest.mark.parametrize("name", ["a" * 5000, "model.safetensors/inside"])
def test_a_path_that_cannot_be_is_a_sentence(name: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": ramp(2)})
    assert "cannot open" in refusal(tmp_path / name)
    assert not is_series(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_config_that_is_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": ramp(2)})
    os.mkfifo(tmp_path / "config.json")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(BadInput, match="not a regular file"):
        _ = checkpoint.config
    assert checkpoint.fingerprint


def test_hidden_files_are_not_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": ramp(2)}).rename(tmp_path / "weights.safetensors")
    (tmp_path / "._weights.safetensors").write_bytes(b"what another system leaves behind")
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_a_missing_path_says_so(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert "no .safetensors file" in refusal(tmp_path)


def test_a_dead_link_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    assert "gone" in refusal(tmp_path / "model.safetensors")
    assert "gone" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_path_that_is_none_says_so(name: str) -> None:
    assert "empty or hold a NUL" in refusal(name)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".PT"])
def test_a_pickle_is_refused_with_the_way_out(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"pytorch_model{suffix}"
    file.write_bytes(b"\x80\x02")
    for named in (file, tmp_path):
        message = refusal(named)
        assert "pickle" in message
        assert "save_pretrained" in message


def test_pickles_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    write_shard(tmp_path / "model.safetensors", {"a": ramp(2)})
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


@pytest.mark.parametrize(("name", "kind"), [("a.gguf", "GGUF"), ("a.onnx", "ONNX"), ("a.h5", "HDF5"), ("a.npz", "NumPy")])
def test_another_format_is_refused_by_its_name(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert kind in refusal(tmp_path / name)
    assert kind in refusal(tmp_path)


def test_any_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "not a .safetensors file" in refusal(tmp_path / "notes.txt")


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", '{"a": ' + "[" * 100_000])
def test_a_broken_config_is_refused_when_it_is_read(text: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": ramp(2)})
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(BadInput, match=r"config\.json"):
        _ = checkpoint.config


def test_infinity_in_a_config_is_let_through(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": ramp(2)})
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert open_checkpoint(tmp_path).config == {"time_step_limit": [0.0, float("inf")]}


def hub_model(cache: Path, repository: str = "org/tiny-model") -> Path:
    """The layout that huggingface_hub downloads to: blobs by hash, and a snapshot of links."""
    model = cache / ("models--" + repository.replace("/", "--"))
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    weights = write_shard(model / "blobs" / "part", {"layers.0.w": ramp(2, 3)})
    blob = weights.rename(model / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest())
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    (model / "blobs" / "c0ffee").write_text('{"model_type": "llama"}')
    (snapshot / "config.json").symlink_to(Path("../../blobs/c0ffee"))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def no_hub_variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        ("HF_HUB_CACHE", "."),
        ("HUGGINGFACE_HUB_CACHE", "."),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ],
)
def test_a_hub_name_is_found_where_huggingface_hub_keeps_it(
    variable: str, folder: str, tmp_path: Path, no_hub_variables: pytest.MonkeyPatch
) -> None:
    no_hub_variables.setenv(variable, str(tmp_path))
    snapshot = hub_model(tmp_path / folder)
    checkpoint = open_checkpoint("hf:org/tiny-model")
    assert checkpoint.path == snapshot
    assert checkpoint.name == "tiny-model"
    assert list(checkpoint.tensors) == ["layers.0.w"]
    assert checkpoint.config == {"model_type": "llama"}
    assert open_checkpoint(f"hf:org/tiny-model@{COMMIT}").path == snapshot
    assert open_checkpoint(snapshot).name == "tiny-model"


def test_a_hub_model_without_organisation_is_found(tmp_path: Path, no_hub_variables: pytest.MonkeyPatch) -> None:
    no_hub_variables.setenv("HF_HUB_CACHE", str(tmp_path))
    hub_model(tmp_path, "gpt2")
    assert open_checkpoint("hf:gpt2").name == "gpt2"


def test_a_hub_model_that_was_not_downloaded_says_how_to_get_it(tmp_path: Path, no_hub_variables: pytest.MonkeyPatch) -> None:
    no_hub_variables.setenv("HF_HUB_CACHE", str(tmp_path))
    assert "hf download org/other" in refusal("hf:org/other")


def test_a_revision_that_was_not_downloaded_names_those_that_were(tmp_path: Path, no_hub_variables: pytest.MonkeyPatch) -> None:
    no_hub_variables.setenv("HF_HUB_CACHE", str(tmp_path))
    hub_model(tmp_path)
    assert COMMIT in refusal("hf:org/tiny-model@v2")


def test_a_half_downloaded_snapshot_names_what_is_missing(tmp_path: Path, no_hub_variables: pytest.MonkeyPatch) -> None:
    no_hub_variables.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = hub_model(tmp_path)
    (snapshot / "model.safetensors").resolve().unlink()
    assert "model.safetensors is a link to a file that is gone" in refusal("hf:org/tiny-model")


@pytest.mark.parametrize(
    "reference", ["hf:", "hf:../../etc", "hf:a/b/c", "hf:a--b/c", "hf:/abs", "hf:a/..", "hf:org/tiny-model@../../x", "hf:org/na me"]
)
def test_a_hub_name_cannot_lead_out_of_the_cache(reference: str, tmp_path: Path, no_hub_variables: pytest.MonkeyPatch) -> None:
    no_hub_variables.setenv("HF_HUB_CACHE", str(tmp_path))
    hub_model(tmp_path)
    assert "hf:org/name" in refusal(reference)


def test_a_ref_with_a_path_in_it_is_not_followed(tmp_path: Path, no_hub_variables: pytest.MonkeyPatch) -> None:
    no_hub_variables.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = hub_model(tmp_path)
    (snapshot.parents[1] / "refs" / "main").write_text("../../../..")
    assert "has no main" in refusal("hf:org/tiny-model")


def test_a_path_is_never_looked_up_on_the_hub(tmp_path: Path, no_hub_variables: pytest.MonkeyPatch) -> None:
    no_hub_variables.setenv("HF_HUB_CACHE", str(tmp_path))
    hub_model(tmp_path)
    no_hub_variables.chdir(tmp_path)
    assert "does not exist" in refusal("org/tiny-model")
    assert os.listdir(tmp_path) == ["models--org--tiny-model"]  # noqa: PTH208
