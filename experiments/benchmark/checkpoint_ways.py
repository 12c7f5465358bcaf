"""The ways of the section checkpoint, in shatter and beside it.

Every function takes `(sizes, seed, only, *, alone)`, where `only` is the name of the one way that
is wanted or None, and `alone` says that the other libraries are missing. It returns the ways and
sentences on what was checked, and raises ValueError if the ways do not compute the same.
"""

import json
import os
import subprocess
import sys
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import finetune, lora, others, pinned
from experiments.benchmark.checkpoint import MEMBERS, TOLERANCE
from experiments.benchmark.config import Gpt2
from experiments.benchmark.finetune import Batch
from experiments.benchmark.lora import MembersTrainer
from experiments.benchmark.ways import Made, Way, call_way, compile_program
from shatter import documents, models
from shatter.types import Array, Params

TEXTS, TEXTS_AT_ONCE = 32, 16  # in a call; a larger batch is not faster in either library
ROWS = 1024  # tokens in a product
PRODUCTS = 20  # in a call
IMPORTS = (
    "import transformers",
    "import trl",
    "from transformers import AutoModelForCausalLM",
    "from trl import DPOTrainer",
)


def product(sizes: Gpt2, seed: int, only: str | None, *, alone: bool) -> Made:
    """Multiplies 1,024 tokens by the first kernel of the feed-forward part: the ceiling."""
    hidden = finetune.transformer_config(sizes).hidden_width
    generator = np.random.default_rng(seed)
    shapes = ((ROWS, sizes.width), (sizes.width, hidden))
    x, kernel = (generator.standard_normal(shape).astype(np.float32) for shape in shapes)
    program = compile_program(jnp.matmul, jnp.asarray(x), jnp.asarray(kernel))
    args = (jnp.asarray(x), jnp.asarray(kernel))

    def run() -> None:
        for _ in range(PRODUCTS):
            jax.block_until_ready(program.call(*args))

    ways = [Way("shatter", run, PRODUCTS, program.compile_seconds)]
    if not alone:
        import torch

        a, b = torch.tensor(x), torch.tensor(kernel)
        apart = float(np.abs((a @ b).numpy() - program.call(*args)).max())
        _require(apart < 1e-3, "products", apart)

        def torch_run() -> None:
            for _ in range(PRODUCTS):
                a @ b

        ways.append(Way("PyTorch", torch_run, PRODUCTS))
    operations = 2 * ROWS * sizes.width * hidden
    return Made(_chosen(ways, only), [f"a product has {operations / 1e9:.2f} GFLOP"])


def score(sizes: Gpt2, seed: int, only: str | None, *, alone: bool) -> Made:
    """Scores 32 texts: the log-prob of all their tokens but the first."""
    params = finetune.init(sizes, seed)
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, sizes.vocab_size, size=(TEXTS, sizes.length))
    lm = models.transformer(finetune.transformer_config(sizes))

    def log_probs(params: Params, tokens: Array) -> Array:
        mask = jnp.broadcast_to(jnp.arange(tokens.shape[-1]) > 0, tokens.shape[1:])
        of_batch = lambda texts: documents.document_log_probs(lm, params, texts, mask)
        return jax.lax.map(of_batch, tokens)

    batches = jnp.asarray(tokens.reshape(-1, TEXTS_AT_ONCE, sizes.length))
    program = compile_program(log_probs, params, batches)
    ways = [call_way("shatter", program, (params, batches), TEXTS)]
    if alone or only == "shatter":
        return Made(ways, [])
    from experiments.benchmark import peers

    other = peers.scorer(sizes, params, tokens, TEXTS_AT_ONCE)
    ways.append(Way("transformers", other, TEXTS))
    if only:
        return Made(_chosen(ways, only), [])
    apart = np.abs(np.ravel(program.call(params, batches)) - other()) / (sizes.length - 1)
    _require(apart.max() < TOLERANCE, "mean log-probs of a token", apart.max())
    note = f"mean log-probs of a token: within {apart.max():.1e} nats"
    return Made(ways, [note], is_warm=True)


@cache
def _params_and_batch(sizes: Gpt2, seed: int) -> tuple[Params, Batch]:
    params = finetune.init(sizes, seed)
    return params, finetune.make_batch(sizes, params, seed)


def train(work: str, sizes: Gpt2, seed: int, only: str | None, *, alone: bool) -> Made:
    """Takes a step of DPO on adapters, of DPO or of ILHF."""
    params, batch = _params_and_batch(sizes, seed)
    ours: Any = partial(finetune.trainer, sizes, work.lower(), params, batch)
    other, name = None, "TRL"
    if not alone:
        from experiments.benchmark import peers

        other = partial(peers.trl_trainer, sizes, work.lower(), params, batch, seed)
    if work.startswith("LoRA"):
        layer = lora.last_quarter(sizes) if "last quarter" in work else 0
        adapted = lora.draw(sizes, params, seed, layer=layer)
        ours = partial(lora.trainer, sizes, params, batch, adapted)
        if not alone:
            from experiments.benchmark import peft_models

            name = "TRL + peft"
            other = partial(peft_models.trl_trainer, sizes, params, batch, adapted, seed)
    makers = {"shatter": ours} | ({} if other is None else {name: other})
    return pinned.compare_trainers(makers, sizes, only, steps=1)


def sample(sizes: Gpt2, seed: int, only: str | None, *, alone: bool) -> Made:
    """Samples new tokens at temperature 1 with a cache."""
    return pinned.compare_generation(sizes, seed, only, alone)


def members(sizes: Gpt2, seed: int, only: str | None, *, alone: bool) -> Made:
    """Takes a step of one adapter, of 8 in one program, and of as many in a loop by peft."""
    params, batch = _params_and_batch(sizes, seed)
    adapted = lora.draw_members(sizes, params, seed, MEMBERS)
    first = adapted._replace(adapters=jax.tree.map(lambda leaf: leaf[:1], adapted.adapters))
    many = f"{MEMBERS} adapters"
    made = [
        lora.members_trainer(sizes, params, batch, group, f"shatter, {name}")
        for name, group in (("1 adapter", first), (many, adapted))
    ]
    if not alone:
        from experiments.benchmark import peft_models

        other = peft_models.members_trainer(sizes, params, batch, adapted, f"peft, {many}")
        made.append(other)
    losses = {trainer.name: [trainer.step() for _ in range(sizes.steps)] for trainer in made}
    notes = []
    if not alone:
        apart = np.abs(np.subtract(losses[f"shatter, {many}"], losses[f"peft, {many}"])).max()
        _require(apart < TOLERANCE, f"losses of {many}", apart)
        notes.append(f"losses of {sizes.steps} steps, {many}: within {apart:.1e}")
    ways = _chosen([_members_way(trainer) for trainer in made], only)
    return Made(ways, notes, is_warm=True)


def _members_way(trainer: MembersTrainer) -> Way:
    program = trainer.program
    compiled = (program.compile_seconds, program.peak_bytes) if program else (None, None)
    return Way(trainer.name, trainer.step, 1, *compiled)


def first_token(sizes: Gpt2, seed: int, only: str | None, *, alone: bool) -> Made:
    """Starts a process that imports the library, loads the model and writes one token."""
    del seed
    assert sizes.folder is not None
    names = ["shatter"] if alone else ["shatter", "transformers"]
    starts = {name: partial(_start, name, sizes.folder) for name in names}
    found = {name: start() for name, start in starts.items()}
    _require(len({each["token"] for each in found.values()}) == 1, "first tokens", found)
    notes = [
        f"{name}: import {each['import']:.1f} s, load {each['load']:.1f} s, compile and run "
        f"{each['run']:.1f} s"
        for name, each in found.items()
    ]
    ways = _chosen([Way(name, start, 1) for name, start in starts.items()], only)
    return Made(ways, notes, is_warm=True)


def imports(sizes: Gpt2, seed: int, only: str | None, *, alone: bool) -> Made:
    """Starts a process that imports a library, or shows the help of the command."""
    del sizes, seed
    ways = [*others.imports(["import shatter"]), others.show_help()]
    if not alone:
        ways += others.imports(IMPORTS)
    note = "transformers and TRL import what a name needs only when the name is asked for"
    return Made(_chosen(ways, only), [note])


def _start(name: str, folder: str) -> dict[str, float]:
    path = os.pathsep.join(filter(None, [str(pinned.ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark.first_token", name, folder],
        env=os.environ | {"PYTHONPATH": path, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _chosen(ways: list[Way], only: str | None) -> list[Way]:
    return [way for way in ways if only in (None, way.name)]


def _require(same: bool, what: str, found: Any) -> None:
    if not same:
        raise ValueError(
            f"expected the {what} of all ways to agree, found {found}: the ways do not do the "
            "same work"
        )
