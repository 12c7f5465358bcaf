"""What every test gets: fake devices, fast compilation, no rank promotion, key checks, data."""

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# jax reads these when it first compiles; what the user has set stays. Eight CPU devices are for the
# sharding tests. Most of the time goes to compiling, which the lowest optimisation level shortens.
# The cache spares a module the programs that another module, worker or process has compiled.
_FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    "--xla_backend_optimization_level": 0,
}
for _flag, _value in _FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

# A forgotten axis is an error, not a silent [N, N] table.
jax.config.update("jax_numpy_rank_promotion", "raise")


# Parts of the library whose tests also check that no random key is used twice.
CHECKED_KEYS = (
    "choice",
    "documents",
    "ensembles",
    "evaluation",
    "exploration",
    "inference",
    "training",
)


@pytest.fixture(autouse=True, scope="module")
def fresh_caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Frees the programs of a module, so that a worker's memory does not grow with its modules."""
    part = request.path.relative_to(ROOT / "tests").parts[0]
    jax.config.update("jax_debug_key_reuse", part in CHECKED_KEYS)
    yield
    jax.config.update("jax_debug_key_reuse", False)
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":  # where free memory otherwise stays with the process
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for the length of one test: identities are exact to about 1e-12 in it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that SHATTER_DATA_DIR names; the test is skipped without it."""
    folder = os.environ.get("SHATTER_DATA_DIR")
    if not folder:
        pytest.skip("SHATTER_DATA_DIR is not set: it names the folder with the real data")
    if not Path(folder).is_dir():
        pytest.skip(f"SHATTER_DATA_DIR is {folder!r}, which is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the data folder or the user's cache."""
    from experiments.common import sources

    try:
        path = sources.find("smollm2-135m")
    except sources.SourceError as error:
        pytest.skip(str(error))
    if path is None:
        command = "python -m experiments.common.fetch smollm2-135m"
        pytest.skip(f"SmolLM2-135M-Instruct is not on this machine; to fetch it: {command}")
    return path


CHARACTERS = "abcdefgh "


@pytest.fixture(scope="session")
def make_model() -> Callable[..., None]:
    """`(folder, num_layers, words=(), seed=1)`: writes a random model of the Llama family.

    A token a character, or a word where words are given; its laws are then far from uniform.
    """
    return _make_model


def _make_model(folder: Path, num_layers: int, words: Sequence[str] = (), seed: int = 1) -> None:
    import tokenizers

    from shatter import models

    texts = words or CHARACTERS
    vocabulary = {name: n for n, name in enumerate(["<unk>", "<s>", "</s>", *texts])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    if words:
        cut = tokenizers.pre_tokenizers
        backend.pre_tokenizer = cut.Sequence([cut.WhitespaceSplit(), cut.Split(".", "isolated")])
    else:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
        backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<s>", "</s>"])
    config = models.TransformerConfig(
        vocab_size=len(vocabulary),
        max_length=32,
        width=8,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=8,
        norm="rms",
        activation="silu",
        gated=True,
        rope=models.Rope(),
        qkv_bias=False,
        attention_out_bias=False,
        mlp_bias=False,
        tied=True,
        head_bias=False,
        bos=1,
        eos=(2,),
    )
    with jax.enable_x64(False):
        params = jax.jit(models.transformer(config).init)(jax.random.key(seed))
    if words:
        embedding = params["params"]["token_embedding"]
        embedding["embedding"] = 3 * embedding["embedding"]  # it is tied
    models.save_pretrained(folder, config, params)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
