"""Fingerprints: equal means equal content, and nothing is read twice."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy
import pytest
from checkpoints.checkpoint_files import entry, file_bytes, ramp, write_shard, write_sharded

import modelscope_app.checkpoints.fingerprint as module
from modelscope_app.api import BadInput
from modelscope_app.checkpoints import FileState, open_checkpoint


def fingerprint(path: Path) -> str:
    return open_checkpoint(path).fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shard(tmp_path / "one" / "model.safetensors", {"a": ramp(64, 8), "b": ramp(100)})
    (tmp_path / "one" / "config.json").write_text('{"model_type": "mlp"}')
    (tmp_path / "one" / "tokenizer.json").write_text("{}")
    return tmp_path / "one"


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL_UP_TO_BYTES", 0)


def settle(folder: Path) -> None:
    """Let the files be older than the time within which a write could go unnoticed."""
    newest = max(path.stat().st_ctime for path in folder.rglob("*"))
    time.sleep(max(0.0, newest + 1.05 - time.time()))


def test_two_fine_tunes_with_the_same_header_differ(tmp_path: Path) -> None:
    values = ramp(64, 8)
    changed = values.copy()
    changed[63, 7] += 2**-10  # one weight, the last
    one = write_shard(tmp_path / "one.safetensors", {"a": values})
    two = write_shard(tmp_path / "two.safetensors", {"a": changed})
    assert one.read_bytes()[:100] == two.read_bytes()[:100]
    assert fingerprint(one) != fingerprint(two)


def test_a_copy_under_another_name_has_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(folder)
    assert fingerprint(folder / "model.safetensors") == fingerprint(folder)


def test_config_and_tokenizer_count(folder: Path) -> None:
    seen = {fingerprint(folder)}
    for name, text in [("config.json", "{}"), ("tokenizer.json", "[]"), ("chat_template.jinja", "x"), ("merges.txt", "a b")]:
        (folder / name).write_text(text)
        seen.add(fingerprint(folder))
    (folder / "config.json").unlink()
    seen.add(fingerprint(folder))
    assert len(seen) == 6
    (folder / "README.md").write_text("not content")
    assert fingerprint(folder) in seen


@pytest.mark.parametrize(
    "name",
    [
        "sentencepiece.bpe.model", "tekken.json", "source.spm", "target.spm", "tokenizer.model.v3", "qwen.tiktoken",
        "tokenizer.4.0.0.json", "additional_chat_templates/tool_use.jinja",
    ],
)  # fmt: skip
def test_every_kind_of_tokenizer_counts(name: str, folder: Path) -> None:
    before = fingerprint(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"A")
    one = fingerprint(folder)
    (folder / name).write_bytes(b"B")
    assert len({before, one, fingerprint(folder)}) == 3
    assert name in open_checkpoint(folder).tokenizer_files


def test_content_cannot_move_between_files_unnoticed(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    assert fingerprint(folder) != before


def test_it_is_made_of_the_sha256_of_the_files(folder: Path) -> None:
    lines = ["mscope checkpoint 1 full", f"shard {hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()}"]
    lines += [f"file {name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}" for name in ("config.json", "tokenizer.json")]
    expected = hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()[:32]
    assert fingerprint(folder) == f"full:{expected}"
    assert open_checkpoint(folder).full_fingerprint() == f"full:{expected}"


def test_which_shard_is_called_what_does_not_matter(tmp_path: Path) -> None:
    one = write_sharded(tmp_path / "1", {"x.safetensors": {"a": ramp(3)}, "y.safetensors": {"b": ramp(4)}})
    two = write_sharded(tmp_path / "2", {"y.safetensors": {"a": ramp(3)}, "x.safetensors": {"b": ramp(4)}})
    assert fingerprint(one) == fingerprint(two)


def test_an_unchanged_file_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(folder)
    before = fingerprint(folder)
    monkeypatch.setattr(module, "_sha256", lambda shard: pytest.fail("read again"))
    assert fingerprint(folder) == before


def test_a_file_changed_in_place_with_its_time_set_back_is_read_again(folder: Path) -> None:
    settle(folder)
    before = fingerprint(folder)
    file = folder / "model.safetensors"
    status = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"\x7f")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert fingerprint(folder) != before


def test_a_file_written_just_now_is_not_remembered(folder: Path, own_folders: Path) -> None:
    os.utime(folder / "model.safetensors")
    fingerprint(folder)
    assert not list((own_folders / "cache").rglob("*.json"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"file": 1}', '{"file": null, "digests": {}}'])
def test_a_damaged_cache_is_computed_again(damage: str, folder: Path, own_folders: Path) -> None:
    settle(folder)
    before = fingerprint(folder)
    entries = list((own_folders / "cache" / "fingerprints").iterdir())
    assert len(entries) == 1
    entries[0].write_text(damage)
    assert fingerprint(folder) == before


def test_without_a_cache_folder_it_still_works(folder: Path, own_folders: Path) -> None:
    settle(folder)
    (own_folders / "cache").write_text("a file where the folder should be")
    assert fingerprint(folder).startswith("full:")


def test_a_checkpoint_that_changed_since_it_was_opened_has_none(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    write_shard(folder / "model.safetensors", {"a": ramp(65, 8)})
    with pytest.raises(BadInput, match="changed on disk"):
        _ = checkpoint.fingerprint


def test_blocks_cover_small_ranges_whole_and_large_ones_from_end_to_end() -> None:
    block = module.BLOCK_BYTES
    for size in (0, 1, block - 1, block, block + 1, 5 * block + 7, 1000 * block + 1):
        for blocks in (1, 2, 3, 54):
            starts = module.block_starts(100, 100 + size, blocks)
            assert len(starts) <= blocks
            assert all(100 <= start < 100 + size for start in starts)
            covered = {byte for start in starts for byte in range(start, min(start + block, 100 + size))} if size < 10**5 else set()
            if size <= blocks * block:
                assert covered == set(range(100, 100 + size))
            elif blocks > 1:
                assert starts[0] == 100
                assert starts[-1] + block == 100 + size


@pytest.mark.usefixtures("everything_is_large")
def test_a_large_checkpoint_is_sampled_and_says_so(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.fingerprint.startswith("sampled:")
    assert checkpoint.full_fingerprint().startswith("full:")
    assert checkpoint.fingerprint == fingerprint(folder)


@pytest.mark.usefixtures("everything_is_large")
def test_sampling_sees_training_even_where_the_times_agree(tmp_path: Path) -> None:
    generator = numpy.random.default_rng(0)
    before = {f"layers.{layer}.w": generator.normal(size=(300, 200)) for layer in range(4)}
    after = {name: values + 1e-3 * generator.normal(size=values.shape) for name, values in before.items()}
    files = [write_shard(tmp_path / name, values) for name, values in [("a.safetensors", before), ("b.safetensors", after)]]
    for file in files:
        os.utime(file, ns=(1, 1))
    assert fingerprint(files[0]) != fingerprint(files[1])
    one_layer = {**before, "layers.2.w": after["layers.2.w"]}
    edited = write_shard(tmp_path / "c.safetensors", one_layer)
    os.utime(edited, ns=(1, 1))
    assert fingerprint(edited) not in {fingerprint(file) for file in files}


@pytest.mark.usefixtures("everything_is_large")
def test_outside_the_samples_the_time_of_writing_tells_two_files_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLED_BYTES", 2 * module.BLOCK_BYTES)
    values = ramp(300, 200)
    edited = values.copy()
    edited[100, 7] += 1
    files = [write_shard(tmp_path / name, {"w": tensor}) for name, tensor in [("a.safetensors", values), ("b.safetensors", edited)]]
    for file in files:
        os.utime(file, ns=(1, 1))
    assert fingerprint(files[0]) == fingerprint(files[1])  # the limit that the documentation states
    assert open_checkpoint(files[0]).full_fingerprint() != open_checkpoint(files[1]).full_fingerprint()
    os.utime(files[1], ns=(1, 2))
    assert fingerprint(files[0]) != fingerprint(files[1])


@pytest.mark.usefixtures("everything_is_large")
def test_in_the_hub_cache_a_copy_on_another_machine_has_the_same(tmp_path: Path) -> None:
    found = []
    for machine in ("one", "two"):
        blobs = tmp_path / machine / "models--org--m" / "blobs"
        snapshot = blobs.parent / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        weights = write_shard(blobs / "part", {"a": ramp(64)})
        blob = weights.rename(blobs / hashlib.sha256(weights.read_bytes()).hexdigest())
        os.utime(blob, ns=(len(machine), len(found) + 1))
        (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
        found.append(fingerprint(snapshot))
    assert found[0] == found[1]


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("asked_before", [False, True])
def test_it_does_not_depend_on_the_link_nor_on_who_asked_first(asked_before: bool, tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--m" / "blobs"
    snapshot, mine = blobs.parent / "snapshots" / "abc", tmp_path / "mine"
    snapshot.mkdir(parents=True)
    mine.mkdir()
    weights = write_shard(blobs / "part", {"a": ramp(64)})
    blob = weights.rename(blobs / hashlib.sha256(weights.read_bytes()).hexdigest())
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    (mine / "model.safetensors").symlink_to(snapshot / "model.safetensors")
    settle(tmp_path)
    paths = [snapshot, mine] if asked_before else [mine, snapshot]
    assert len({fingerprint(path) for path in paths}) == 1
    os.utime(blob, ns=(1, 1))  # the name of the blob stands for its content, not the time
    assert fingerprint(mine) == fingerprint(snapshot)


def test_a_file_of_the_same_number_on_another_device_is_another_file(folder: Path) -> None:
    status = os.stat_result((folder / "model.safetensors").stat())
    state = FileState.of(status)
    assert state.device == status.st_dev
    assert not state._replace(device=state.device + 1).same_content(state)


def test_thirty_gigabytes_take_seconds(tmp_path: Path) -> None:
    """Sparse files: 10 shards of 3 GB. Hashing them whole would take half a minute on any machine."""
    for number in range(10):
        tensors = {f"layers.{number}.{part}": entry("F32", [1000, 25_000], 10**8 * part, 10**8 * (part + 1)) for part in range(30)}
        file = tmp_path / f"part{number}.safetensors"
        file.write_bytes(file_bytes(tensors))
        os.truncate(file, file.stat().st_size + 3 * 10**9)
    start = time.monotonic()
    assert fingerprint(tmp_path).startswith("sampled:")
    assert time.monotonic() - start < 10
