"""A checkpoint's tokenizer, from files as checkpoints have them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from modelscope_app.api import BadInput
from modelscope_app.checkpoints import open_checkpoint
from modelscope_app.data import CheckpointTokenizer, MissingTokenizer, load_tokenizer

# tests/data/conftest.py saves these tokenizers
BOS_BY_ALGORITHM = {"bpe": ("<s>", ""), "words": ("<s>", ""), "metaspace": ("<s>", ""), "wordpiece": ("[CLS]", "[SEP]")}
TEXTS = ["the cat sat on the mat", "hello", " hello  world ", "naïve café 😀", "cats", "a\nb", "日本"]
CONVERSATION = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello world"}]
CHAT_WITH_BOS = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT_WITHOUT_BOS = CHAT_WITH_BOS.removeprefix("{{ bos_token }}")

MakeCheckpoint = Callable[..., Any]


def loaded(checkpoint: Any) -> tuple[CheckpointTokenizer, list[str]]:
    heard: list[str] = []
    return load_tokenizer(checkpoint, heard.append), heard


@pytest.mark.parametrize("algorithm", BOS_BY_ALGORITHM)
@pytest.mark.parametrize("with_added", [True, False])
def test_encoding_is_what_transformers_encodes(make_checkpoint: MakeCheckpoint, algorithm: str, with_added: bool) -> None:
    checkpoint = make_checkpoint(algorithm, around=BOS_BY_ALGORITHM[algorithm] if with_added else ("", ""))
    tokenizer, _ = loaded(checkpoint)
    oracle = AutoTokenizer.from_pretrained(checkpoint.path)
    for text in TEXTS:
        assert tokenizer.encode(text) == oracle.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == oracle.decode(oracle.encode(text), clean_up_tokenization_spaces=False)
    assert tokenizer.encode_bare(TEXTS * 300) == oracle(TEXTS * 300, add_special_tokens=False)["input_ids"]
    assert tokenizer.adds_bos == with_added


def test_a_text_that_begins_with_bos_gets_no_second_one(make_checkpoint: MakeCheckpoint) -> None:
    tokenizer, _ = loaded(make_checkpoint(around=("<s>", "</s>")))
    ids = tokenizer.encode("<s>hello</s>")
    assert ids == tokenizer.encode("hello")
    assert tokenizer.bos_id is not None
    assert ids.count(tokenizer.bos_id) == 1


def test_a_tokenizer_that_adds_nothing_adds_nothing(make_checkpoint: MakeCheckpoint) -> None:
    tokenizer, _ = loaded(make_checkpoint(bos_token="<s>"))
    assert tokenizer.bos_id == 0
    assert not tokenizer.adds_bos
    assert tokenizer.encode("hello") == tokenizer.encode_bare(["hello"])[0]


@pytest.mark.parametrize("around", [("<s>", ""), ("", "")])
@pytest.mark.parametrize("answer_follows", [True, False])
def test_a_conversation_has_one_bos_whoever_writes_it(
    make_checkpoint: MakeCheckpoint, around: tuple[str, str], answer_follows: bool
) -> None:
    tokenizer, _ = loaded(make_checkpoint(around=around, template=CHAT_WITH_BOS, bos_token="<s>"))
    ids = tokenizer.chat(CONVERSATION, answer_follows)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.bos_id is not None
    assert ids.count(tokenizer.bos_id) == 1
    rendered = "<s><|user|>hello</s><|assistant|>hello world</s>" + ("<|assistant|>" if answer_follows else "")
    assert tokenizer.decode(ids) == rendered


def test_a_template_without_bos_decides_that_there_is_none(make_checkpoint: MakeCheckpoint) -> None:
    tokenizer, _ = loaded(make_checkpoint(around=("<s>", ""), template=CHAT_WITHOUT_BOS))
    assert tokenizer.bos_id not in tokenizer.chat(CONVERSATION)


def test_a_template_in_a_file_of_its_own_is_used(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(bos_token="<s>")
    (checkpoint.path / "chat_template.jinja").write_text(CHAT_WITH_BOS)
    tokenizer, heard = loaded(checkpoint)
    assert tokenizer.has_chat_template
    assert tokenizer.decode(tokenizer.chat(CONVERSATION[:1])) == "<s><|user|>hello</s>"
    assert heard == []


def test_without_a_template_messages_are_lines_and_one_warning_is_given(make_checkpoint: MakeCheckpoint) -> None:
    tokenizer, heard = loaded(make_checkpoint(around=("<s>", "</s>")))
    assert not tokenizer.has_chat_template
    assert tokenizer.decode(tokenizer.chat(CONVERSATION)) == "<s>user: hello\nassistant: hello world\n</s>"
    assert tokenizer.decode(tokenizer.chat(CONVERSATION[:1], answer_follows=True)) == "<s>user: hello\nassistant:"
    assert len(heard) == 1
    assert "no chat template" in heard[0]


def test_without_a_listener_warnings_are_pythons(make_checkpoint: MakeCheckpoint) -> None:
    with pytest.warns(UserWarning, match="no chat template"):
        load_tokenizer(make_checkpoint()).chat(CONVERSATION)


def test_a_template_that_asks_for_the_date_renders_the_same_every_day(make_checkpoint: MakeCheckpoint) -> None:
    template = (
        "\n  {%- if true %}\n  {{ strftime_now('%d %b %Y') }}{% endif %}{% for m in messages %}{{ strftime_now('%-d %B %y') }}{% endfor %}"
    )
    tokenizer, heard = loaded(make_checkpoint(template=template))
    assert tokenizer.chat_text(CONVERSATION[:1]) == "  26 Jul 202426 July 24"
    tokenizer.chat_text(CONVERSATION)
    assert len(heard) == 1
    assert "date" in heard[0]


def test_fixing_the_date_changes_no_other_character_of_a_template(make_checkpoint: MakeCheckpoint) -> None:
    template = "\n  {% if strftime_now is defined %}\n x {{ '' }}\n{% endif %}  {{ messages[0]['content'] }}\n\n"
    fixed, _ = loaded(make_checkpoint(template=template))
    plain, _ = loaded(make_checkpoint(template=template.replace("strftime_now", "messages"), name="plain"))
    assert fixed.chat_text(CONVERSATION) == plain.chat_text(CONVERSATION)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[7].content.x }}", "has no element 7"),
        ("{% for %}", "Expected"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ({"tool_use": "x"}, "no default"),
    ],
)
def test_a_template_that_raises_is_bad_input(make_checkpoint: MakeCheckpoint, template: Any, reason: str) -> None:
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    tokenizer, _ = loaded(make_checkpoint(template=template))
    with pytest.raises(BadInput, match="the chat template refuses these messages") as caught:
        tokenizer.chat(CONVERSATION)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "messages is not a list"),
        ([], "messages is empty"),
        (["hello"], "message 1 is not an object"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "content of message 2 is missing"),
        ([{"role": "user", "content": None}], "content of message 1 is missing"),
        ([{"role": "user", "content": 7}], "content of message 1 is 7, a number, not a string"),
        ([{"content": "x"}], "role of message 1 is missing"),
    ],
)
def test_messages_that_are_no_conversation_are_refused(make_checkpoint: MakeCheckpoint, messages: Any, reason: str) -> None:
    tokenizer, _ = loaded(make_checkpoint(template=CHAT_WITH_BOS))
    with pytest.raises(BadInput, match=reason):
        tokenizer.chat(messages)


def test_padding_falls_back_to_eos_then_bos_then_zero(make_checkpoint: MakeCheckpoint) -> None:
    def pad_id(name: str, **stated: Any) -> int:
        return loaded(make_checkpoint(name=name, **stated))[0].pad_id

    assert pad_id("own", pad_token="<|user|>", eos_token="</s>", bos_token="<s>") == 2
    assert pad_id("eos", eos_token="</s>", bos_token="<|user|>") == 1
    assert pad_id("bos", bos_token="<|user|>") == 2
    assert pad_id("none") == 0


def test_padding_is_never_an_id_the_model_has_no_embedding_for(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(pad_token="<|extra|>", eos_token="</s>", config={"model_type": "gpt2", "vocab_size": 200})
    tokenizer, _ = loaded(checkpoint)
    assert tokenizer.encode_bare(["<|extra|>"])[0][0] >= 200
    assert tokenizer.pad_id == 1


@pytest.mark.parametrize("algorithm", ["bpe", "words", "metaspace"])
def test_tokens_read_one_after_another_are_the_running_text(make_checkpoint: MakeCheckpoint, algorithm: str) -> None:
    tokenizer, _ = loaded(make_checkpoint(algorithm))
    ids = tokenizer.encode("hello world the cat sat")
    assert "".join(tokenizer.token(id) for id in ids).strip() == "hello world the cat sat"


def test_a_piece_of_a_word_and_a_piece_of_a_character_have_texts_of_their_own(make_checkpoint: MakeCheckpoint) -> None:
    pieces, _ = loaded(make_checkpoint("wordpiece", name="pieces"))
    assert [pieces.token(id) for id in pieces.encode("cats")] == [" cat", "s"]
    byte_level, _ = loaded(make_checkpoint(name="bytes"))
    broken = [byte_level.token(id) for id in byte_level.encode("日")]
    assert len(broken) == 3
    assert len(set(broken)) == 3
    assert not any("\ufffd" in text for text in broken)


def test_ids_beyond_the_tokenizer_are_shown_and_decoded_without_failing(make_checkpoint: MakeCheckpoint) -> None:
    tokenizer, _ = loaded(make_checkpoint())
    assert tokenizer.token(10**6) == "<id 1000000>"
    assert tokenizer.token(-1) == "<id -1>"
    assert tokenizer.decode([*tokenizer.encode("hello"), 10**6, -1]) == "hello"


def test_half_a_surrogate_pair_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(BadInput, match="surrogate"):
        loaded(make_checkpoint())[0].encode("a\ud800")


def test_a_checkpoint_without_tokenizer_says_what_to_do(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(config={"model_type": "mlp"})
    (checkpoint.path / "tokenizer.json").unlink()
    (checkpoint.path / "tokenizer_config.json").unlink()
    with pytest.raises(MissingTokenizer, match=r"put its tokenizer\.json and tokenizer_config\.json there, or use rows of input_ids"):
        load_tokenizer(checkpoint)


def test_an_opened_checkpoint_brings_its_tokenizer_and_its_limits(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(config={"model_type": "gpt2", "vocab_size": 500, "n_positions": 64}).path
    save_file({"weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    tokenizer, _ = loaded(open_checkpoint(folder))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert tokenizer.limits == (500, 64)


def test_a_single_file_checkpoint_has_the_tokenizer_beside_it(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    file = folder.path / "model.safetensors"
    file.write_bytes(b"")
    tokenizer, _ = loaded(type(folder)(file))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


@pytest.mark.parametrize("content", ['{"x', "[]", '{"model": {"type": "Unheard"}}', ""])
def test_a_damaged_tokenizer_is_bad_input_that_names_the_folder(make_checkpoint: MakeCheckpoint, content: str) -> None:
    checkpoint = make_checkpoint()
    (checkpoint.path / "tokenizer.json").write_text(content)
    with pytest.raises(BadInput, match="its tokenizer cannot be loaded") as caught:
        load_tokenizer(checkpoint)
    assert str(checkpoint.path) in str(caught.value)
    assert not isinstance(caught.value, MissingTokenizer)


def test_tokenizer_code_of_a_checkpoint_is_never_run(make_checkpoint: MakeCheckpoint) -> None:
    auto_map = {"AutoTokenizer": ["evil.EvilTokenizer", None]}
    checkpoint = make_checkpoint(tokenizer_class="EvilTokenizer", auto_map=auto_map, config={"model_type": "evil", "auto_map": auto_map})
    trace = checkpoint.path / "ran"
    (checkpoint.path / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass EvilTokenizer: pass\n")
    (checkpoint.path / "config.json").write_text(json.dumps(checkpoint.config))
    with pytest.raises(BadInput, match="needs Python code from the checkpoint, which is never run"):
        load_tokenizer(checkpoint)
    assert not trace.exists()


def test_an_architecture_transformers_does_not_know_keeps_its_tokenizer(
    make_checkpoint: MakeCheckpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer, _ = loaded(make_checkpoint(config={"model_type": "mlp"}))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert capfd.readouterr().err == ""
