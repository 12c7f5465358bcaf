"""Loads a model from a folder and writes the likeliest first token after a prompt.

`python -m experiments.benchmark.first_token shatter FOLDER` prints one line of JSON with the token
and the seconds of each part; `transformers` in the place of `shatter` does the same by that
library. The section checkpoint times whole such processes.
"""

import json
import sys
import time

PROMPT = tuple(range(100, 116))


def shatter(folder: str) -> dict[str, float]:
    """Returns the token and the seconds of importing, loading, and compiling with the first run."""
    began = time.perf_counter()
    import jax
    import jax.numpy as jnp

    from shatter import models
    from shatter.cli.common.compiling import compiler_options

    imported = time.perf_counter()
    config, params, _ = models.load_pretrained(folder, dtype="float32")
    loaded = time.perf_counter()
    lm = models.transformer(config)
    first = lambda params, tokens: jnp.argmax(lm.apply(params, tokens)[0, -1])
    prompt = jnp.array([[token % config.vocab_size for token in PROMPT]])
    token = int(jax.jit(first, compiler_options=compiler_options())(params, prompt))
    return _answer(token, began, imported, loaded)


def transformers(folder: str) -> dict[str, float]:
    """Returns the token and the seconds of importing, loading, and the first run."""
    began = time.perf_counter()
    import importlib

    import torch

    library = importlib.import_module("transformers")
    library.utils.logging.disable_progress_bar()
    imported = time.perf_counter()
    net = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loaded = time.perf_counter()
    prompt = torch.tensor([[token % net.config.vocab_size for token in PROMPT]])
    with torch.inference_mode():
        token = int(net(input_ids=prompt, use_cache=False).logits[0, -1].argmax())
    return _answer(token, began, imported, loaded)


def _answer(token: int, began: float, imported: float, loaded: float) -> dict[str, float]:
    now = time.perf_counter()
    return {
        "token": token,
        "import": imported - began,
        "load": loaded - imported,
        "run": now - loaded,
    }


if __name__ == "__main__":
    print(json.dumps({"shatter": shatter, "transformers": transformers}[sys.argv[1]](sys.argv[2])))
