import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shatter.models.tokenizer import load_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="it is an extra")
pytest.importorskip("jinja2", reason="it is an extra")

PIECES = ["<s>", "</s>", "<pad>", "a", "b", " "]
MESSAGES = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "b"}]


def write(
    folder: Path, *, begins: bool = False, backend: dict[str, Any] | None = None, **files: Any
) -> Path:
    """Makes a folder with the tokenizer of `PIECES`; with `begins` it puts <s> before a text."""
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(PIECES)}, [])
    )
    model.add_special_tokens(PIECES[:3])
    model.decoder = tokenizers.decoders.Fuse()
    if begins:
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    text = json.dumps(json.loads(model.to_str()) | (backend or {}))
    (folder / "tokenizer.json").write_text(text)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_no_tokenizer(tmp_path: Path):
    assert load_tokenizer(tmp_path) is None


def test_encode_adds_nothing_and_reads_special_tokens(tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path, begins=True))
    assert tokenizer.encode("ab a") == [3, 4, 5, 3]
    assert tokenizer.encode("<s>ab</s>") == [0, 3, 4, 1]
    assert tokenizer.encode("") == []


def test_decode(tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path))
    ids = np.array([0, 3, 5, 4, 1])
    assert tokenizer.decode(ids) == "a b"
    assert tokenizer.decode(ids, skip_special=False) == "<s>a b</s>"


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    filled = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    folder = write(tmp_path, backend={"truncation": cut, "padding": filled})
    assert tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("aba").ids == [
        *(3, 4),
        *[2] * 6,
    ]
    assert load_tokenizer(folder).encode("aba") == [3, 4, 3]


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}}, (0, 1, None)),
        (
            {"tokenizer_config": {"eos_token": {"content": "</s>", "special": True}}},
            (None, 1, None),
        ),
        (
            {"special_tokens_map": {"eos_token": {"content": "</s>"}, "pad_token": "<pad>"}},
            (None, 1, 2),
        ),
        (
            {"special_tokens_map": {"eos_token": "<s>"}, "tokenizer_config": {"eos_token": "</s>"}},
            (None, 1, None),
        ),
        # A token that the tokenizer's files do not mention, not even as null, is the model's.
        ({"config": {"bos_token_id": 0, "eos_token_id": [1, 0]}}, (0, 1, None)),
        (
            {"config": {"bos_token_id": 0}, "tokenizer_config": {"bos_token": None}},
            (None, None, None),
        ),
        ({"config": {"bos_token_id": 99, "eos_token_id": None}}, (None, None, None)),
        ({"tokenizer_config": {"pad_token": "[PAD]"}}, (None, None, None)),
    ],
)
def test_special_tokens(files: dict[str, Any], expected: tuple[int | None, ...], tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path, **files))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == expected


def test_special_token_outside_the_vocabulary(tmp_path: Path):
    write(tmp_path, tokenizer_config={"eos_token": "<end>"})
    with pytest.raises(ValueError, match="eos_token is '<end>', which tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "begins, config, expected",
    [
        (True, {"bos_token": "<s>"}, True),
        (False, {"bos_token": "<s>"}, False),
        (False, {"bos_token": "<s>", "add_bos_token": True}, True),
        (True, {"bos_token": "<s>", "add_bos_token": False}, False),
        (True, {"bos_token": None, "add_bos_token": True}, False),
        (True, {}, False),
    ],
)
def test_adds_bos(begins: bool, config: dict[str, Any], expected: bool, tmp_path: Path):
    assert load_tokenizer(write(tmp_path, begins=begins, tokenizer_config=config)).adds_bos is (
        expected
    )


def test_vocab_size(tmp_path: Path):
    assert load_tokenizer(write(tmp_path)).vocab_size == len(PIECES)


def test_vocab_size_is_one_over_the_largest_id(tmp_path: Path):
    extra = {"id": 17, "content": "<x>", "special": True}
    extra |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    folder = write(tmp_path, backend={})
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"]["<x>"] = 17
    whole["added_tokens"].append(extra)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert load_tokenizer(folder).vocab_size == 18


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "expected one JSON object, found list"),
    ],
)
def test_damaged_file(name: str, content: str, message: str, tmp_path: Path):
    (write(tmp_path) / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
NAMED = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]


@pytest.mark.parametrize("template", [TEMPLATE, NAMED])
def test_chat_template_of_the_config(template: Any, tmp_path: Path):
    config = {"bos_token": "<s>", "chat_template": template}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer_config=config))
    assert tokenizer.render_chat(MESSAGES) == "<s>[a b][b]"
    assert tokenizer.encode(tokenizer.render_chat(MESSAGES[1:]))[0] == tokenizer.bos


def test_chat_template_file_comes_first(tmp_path: Path):
    write(tmp_path, tokenizer_config={"chat_template": "no"})
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}")
    assert load_tokenizer(tmp_path).render_chat(MESSAGES) == "2"


def test_no_chat_template(tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path))
    assert tokenizer.chat_template is None
    with pytest.raises(
        ValueError, match=r"--chat_template=FILE \(jinja\) or --chat_template=plain"
    ):
        tokenizer.render_chat(MESSAGES)


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "added_tokens"])
def test_save_keeps_every_byte(name: str, tmp_path: Path):
    (tmp_path / "new").mkdir()
    content = (
        {"\u00e9": 6} if name == "added_tokens" else {"x": "\u00e9", "chat_template": TEMPLATE}
    )
    write(tmp_path, begins=True, **{name: content})
    (tmp_path / "chat_template.jinja").write_bytes(b"a\r\nb\n")
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.save(tmp_path / "new")
    for file in (f"{name}.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / file).read_bytes()
    assert load_tokenizer(tmp_path / "new") == tokenizer


@pytest.mark.parametrize("before", [None, "old", NAMED])
def test_save_with_another_template(before: Any, tmp_path: Path):
    (tmp_path / "new").mkdir()
    config = {"eos_token": "</s>", "chat_template": before}
    (write(tmp_path, tokenizer_config=config) / "chat_template.jinja").write_text("oldest")
    old = load_tokenizer(tmp_path)
    new = old.with_chat_template("{{ 'new' }}")
    new.save(tmp_path / "new")
    loaded = load_tokenizer(tmp_path / "new")
    assert loaded == new
    assert loaded.render_chat(MESSAGES) == "new"
    assert old.render_chat(MESSAGES) == "oldest"
    if before is NAMED:  # the others stay
        saved = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
        assert NAMED[0] in saved["chat_template"]


def test_fingerprint(tmp_path: Path):
    """It changes with everything that changes tokens, and with nothing else."""
    for name in "abc":
        (tmp_path / name).mkdir()
    first = load_tokenizer(write(tmp_path / "a"))
    same = load_tokenizer(write(tmp_path / "b", tokenizer_config={"model_max_length": 8}))
    other = load_tokenizer(write(tmp_path / "c", begins=True))
    template = first.with_chat_template("plain")
    hashes = [tokenizer.fingerprint() for tokenizer in (first, same, other, template)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert all(len(digest) == 64 for digest in hashes)


def test_real_tokenizer(data_dir: Path):
    """It puts a space before every text, so texts must be encoded as a whole."""
    tokenizer = load_tokenizer(data_dir / "stories260k")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.adds_bos) == (1, 2, True)
    assert tokenizer.vocab_size == 512
    text = "Once upon a time, there was a café."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("Once") + tokenizer.encode("upon") != tokenizer.encode("Onceupon")


NEXT = len(PIECES)
FLAGS = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)


def token(text: str, **flags: bool) -> dict[str, Any]:
    return {"content": text, **FLAGS, "special": True, **flags}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {str(NEXT): token("<|end|>")}}},
        {"added_tokens": {"<|end|>": NEXT}, "tokenizer_config": {"eos_token": "<|end|>"}},
        {
            "added_tokens": {"<|end|>": NEXT},
            "tokenizer_config": {"added_tokens_decoder": {str(NEXT): token("<|end|>")}},
        },
    ],
)
def test_a_token_that_stands_beside_tokenizer_json_is_one_token(
    files: dict[str, Any], tmp_path: Path
):
    tokenizer = load_tokenizer(write(tmp_path, **files))
    assert tokenizer.encode("a<|end|>b") == [3, NEXT, 4]
    assert tokenizer.vocab_size == NEXT + 1
    assert tokenizer.decode([3, NEXT]) == "a"  # it is special
    assert tokenizer.decode([3, NEXT], skip_special=False) == "a<|end|>"
    (tmp_path / "new").mkdir()
    tokenizer.save(tmp_path / "new")
    again = load_tokenizer(tmp_path / "new")
    assert again == tokenizer and again.encode("a<|end|>b") == [3, NEXT, 4]
    assert again.fingerprint() == tokenizer.fingerprint()
    (tmp_path / "bare").mkdir()
    assert load_tokenizer(write(tmp_path / "bare")).fingerprint() != tokenizer.fingerprint()


def test_the_settings_of_added_tokens_hold(tmp_path: Path):
    decoder = {
        str(NEXT + 1): token("<r>", rstrip=True, special=False),
        "0": token("<s>"),  # tokenizer.json has it
        str(NEXT): token("<l>", lstrip=True),
        "4": token("b", special=False),  # a word of the vocabulary keeps its id
    }
    tokenizer = load_tokenizer(
        write(tmp_path, tokenizer_config={"added_tokens_decoder": decoder, "eos_token": "<l>"})
    )
    assert tokenizer.eos == NEXT and tokenizer.vocab_size == NEXT + 2
    assert tokenizer.encode("a <l>b<r> a") == [3, NEXT, 4, NEXT + 1, 3]
    assert tokenizer.decode([3, NEXT, NEXT + 1]) == "a<r>"
    assert sorted(tokenizer.added_tokens) == [4, NEXT, NEXT + 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config": {"added_tokens_decoder": {str(NEXT + 3): token("<x>")}}},
            rf"tokenizer_config.json: token '<x>': expected the id {NEXT}, .* found {NEXT + 3}",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"3": token("b")}}},
            r"token 'b': expected the id 4, .* found 3: are the files of two models mixed",
        ),
        (
            {
                "added_tokens": {"<x>": NEXT + 1, "<y>": NEXT},
                "tokenizer_config": {"added_tokens_decoder": {str(NEXT): token("<x>")}},
            },
            r"added_tokens.json: token '<y>': expected the id 7",
        ),
        ({"added_tokens": {"<x>": "6"}}, r"added_tokens.json: '<x>': .* found str '6'"),
        ({"added_tokens": {"<x>": True}}, r"added_tokens.json: '<x>': .* found bool True"),
        ({"added_tokens": {"": 6}}, r"added_tokens.json: '': expected a token's text"),
        ({"added_tokens": {"\ud800": 6}}, r"added_tokens.json: .* UTF-8 can hold"),
        ({"added_tokens": []}, r"added_tokens.json: expected one JSON object, found list"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "expected an object, found list"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"6": "<x>"}}},
            r"added_tokens_decoder\['6'\]: expected an id and .* found str '<x>'",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"six": token("<x>")}}}, r"\['six'\]"),
        ({"tokenizer_config": {"added_tokens_decoder": {"6": {"content": 5}}}}, r"\['6'\]"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"6": token("<x>") | {"lstrip": 1}}}},
            "lstrip, rstrip, normalized, special: true or false",
        ),
        ({"tokenizer_config": {"eos_token": 5}}, r"config.json: eos_token: .* found int 5"),
        ({"special_tokens_map": {"bos_token": ["<s>"]}}, r"map.json: bos_token: .* found list"),
        ({"special_tokens_map": {"pad_token": {"id": 2}}}, r"map.json: pad_token: .* found dict"),
        ({"tokenizer_config": {"eos_token": "\ud83d"}}, r"config.json: eos_token: .* surrogate"),
        ({"special_tokens_map": {"sep_token": {"content": "a\udc00"}}}, r"map.json: sep_token: "),
        ({"tokenizer_config": {"add_bos_token": "false"}}, r"add_bos_token: .* found str 'false'"),
        ({"config": {"eos_token_id": "2"}}, r"config.json: eos_token_id: .* found str '2'"),
        ({"config": {"bos_token_id": 1.5}}, r"config.json: bos_token_id: .* found float 1.5"),
        ({"config": {"bos_token_id": 2**40}}, r"bos_token_id: expected a whole number below 2\^31"),
        ({"config": {"eos_token_id": [True]}}, r"eos_token_id: .* found list \[True\]"),
        ({"tokenizer_config": {"chat_template": 7}}, r"config.json: chat_template: .* found int 7"),
        ({"tokenizer_config": {"chat_template": ["a"]}}, r"chat_template: expected a text, a list"),
        (
            {"tokenizer_config": {"chat_template": [{"name": "default"}]}},
            r"chat_template: expected a text, a list of .*, found list",
        ),
        ({"tokenizer_config": {"chat_template": "\udc00"}}, "chat_template: .* UTF-8 can hold"),
    ],
)
def test_what_does_not_belong_there_is_named(files: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(write(tmp_path, **files))


BAD_BYTES = [b"", b"\xff\xfe\x00", b"null", b"[" * 100000, b'{"a": "\x80"}', b"\x00" * 64]


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"]
)
@pytest.mark.parametrize("content", BAD_BYTES)
def test_damaged_files_are_named(name: str, content: bytes, tmp_path: Path):
    (write(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_tokenizer(tmp_path)


def test_a_template_file_that_is_no_text_is_named(tmp_path: Path):
    (write(tmp_path) / "chat_template.jinja").write_bytes(b"\xff{{ 1 }}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja cannot be read as UTF-8"):
        load_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[7].content }}")
    with pytest.raises(ValueError, match=r"^the chat template .*/chat_template\.jinja refuses"):
        load_tokenizer(tmp_path).render_chat([{"role": "user", "content": "a"}])
    (tmp_path / "chat_template.jinja").unlink()
    write(tmp_path, tokenizer_config={"chat_template": "{{ 1 / 0 }}"})
    with pytest.raises(ValueError, match=r"^the chat template of .*tokenizer_config\.json refuses"):
        load_tokenizer(tmp_path).render_chat([{"role": "user", "content": "a"}])


def test_parts_of_a_tokenizer_of_wrong_types_are_refused(tmp_path: Path):
    whole = json.loads((write(tmp_path) / "tokenizer.json").read_text())
    for part in whole:
        for value in (5, "x", [7], {"type": "Nothing"}):
            (tmp_path / "tokenizer.json").write_text(json.dumps(whole | {part: value}))
            try:
                load_tokenizer(tmp_path)
            except ValueError as error:
                assert "tokenizer.json" in str(error)


def test_a_text_that_has_no_tokens_is_named(tmp_path: Path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="?"))
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer cannot encode the text 'b b'"):
        tokenizer.encode("b b")
    with pytest.raises(ValueError, match="cannot encode the text"):
        tokenizer.encode("\ud800")
