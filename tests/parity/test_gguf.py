"""The real SmolLM2-135M-Instruct from its GGUF file, compared with transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
pytest.importorskip("gguf", reason="it is an extra")

from shatter import models  # noqa: E402
from shatter.cli import convert  # noqa: E402
from tests.models.gguf_files import HARD  # noqa: E402

pytestmark = pytest.mark.slow

TEXTS = (
    "The capital of France is",
    "Once upon a time there was a little girl who",
    "In 1984, 12345 people lived in the town of",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Schöne Grüße aus München, sagte der",
    "日本語のテキストを",
    "  leading spaces and trailing ones   ",
    "Q: What is 17 + 25?\nA:",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "People disagree about what is funny, because 😀",
)
LENGTH = 64


class Pair(NamedTuple):
    config: models.TransformerConfig
    params: Any
    tokenizer: models.Tokenizer
    theirs: Any
    their_tokenizer: Any


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Ours from the GGUF file, theirs from the folder that `shatter convert` makes of it."""
    folder = tmp_path_factory.mktemp("smollm2") / "folder"
    convert.experiment(convert.Config(str(smollm2), str(folder)))
    config, params, tokenizer = models.load_pretrained(smollm2)
    assert tokenizer is not None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None  # so that all texts get the same number of tokens
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return Pair(config, params, tokenizer, theirs, their_tokenizer)


def test_logits_and_greedy_tokens(pair: Pair):
    apply = jax.jit(models.transformer(pair.config).apply)
    for text in TEXTS:
        tokens = pair.tokenizer.encode(text)
        with torch.no_grad():
            own = torch.tensor([tokens])
            greedy = pair.theirs.generate(own, max_new_tokens=8, do_sample=False)
            expected = pair.theirs(greedy).logits[0].numpy()
        written = greedy[0].tolist()
        padded = jnp.array([written + [0] * (LENGTH - len(written))])
        found = np.asarray(apply(pair.params, padded))[0, : len(written)]
        np.testing.assert_allclose(found, expected, atol=5e-4, rtol=1e-4)
        assert found[len(tokens) - 1 : -1].argmax(axis=-1).tolist() == written[len(tokens) :]


def test_tokens_of_hard_texts(pair: Pair):
    for text in (*HARD, *TEXTS):
        expected = pair.their_tokenizer.encode(text, add_special_tokens=False)
        assert pair.tokenizer.encode(text) == expected, text
        assert pair.tokenizer.decode(expected) == pair.their_tokenizer.decode(
            expected, skip_special_tokens=True
        )
    messages = [{"role": "user", "content": "Hi"}]
    expected = pair.their_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert pair.tokenizer.render_chat(messages, add_generation_prompt=True) == expected
