"""Tokens that other files add to tokenizer.json, compared with transformers."""

import json
from pathlib import Path

import pytest

from shatter.models import load_tokenizer

transformers = pytest.importorskip("transformers", reason="parity needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="parity needs tokenizers")

ENTRY = {
    "content": "<|new|>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}


@pytest.mark.parametrize("changes", [{}, {"special": False}, {"lstrip": True}, {"rstrip": True}])
@pytest.mark.parametrize("is_in_both", [False, True])
def test_a_token_of_tokenizer_config(changes: dict, is_in_both: bool, tmp_path: Path):
    """The ids are the same before and after saving, also if added_tokens.json has the token too."""
    pieces = {piece: i for i, piece in enumerate(["<unk>", "<end>", "a", "b", " "])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["added_tokens_decoder"] = {"5": ENTRY | changes}
    file.write_text(json.dumps(settings))
    if is_in_both:
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<|new|>": 5}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours is not None
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("a<|new|>b", "<|new|>", "a <|new|> b", "a<|new|><end>", "<|new|><|new|>a", "ab"):
        expected = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == expected
        assert again.encode(text, add_special_tokens=False) == expected
    assert 5 in theirs.encode("<|new|>", add_special_tokens=False)
