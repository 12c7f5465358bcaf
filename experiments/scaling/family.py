"""Pretraining of the family, once for each size, resumed from checkpoints and kept in a folder."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.scaling.config import SIZES, Config
from experiments.scaling.corpus import Corpus
from experiments.scaling.language import Language
from shatter import documents, training
from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.checkpoints import Checkpoints, assert_same_software
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Params

CHUNK = 50  # steps between checkpoints and between reports of progress
WARM_UP = 0.05  # of the steps
MEASURED = 64  # held-out windows


def num_steps(config: Config) -> int:
    """Returns the steps of pretraining."""
    return max(2, config.pretraining_tokens // (config.pretraining_batch * config.context))


def recipe(config: Config, size: str, corpus: Corpus) -> str:
    """Returns what a pretrained model depends on, as the name of its folder."""
    facts: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("context", "pretraining_tokens", "pretraining_batch", "pretraining_rate")
    }
    facts |= {"shape": SIZES[size], "text": hashlib.sha256(corpus.text.encode()).hexdigest()}
    return f"{size}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}"


def load_family_member(
    config: Config,
    language: Language,
    corpus: Corpus,
    folder: Path,
    progress: Callable[[int], None],
) -> tuple[Params, float]:
    """Pretrains a model of the family, or reads it from its folder.

    All sizes see the same windows of the text in the same order. The seed of the run is no part of
    it, so that runs with other seeds share the family.

    Args:
      config: the config.
      language: the model.
      corpus: the text.
      folder: of all sizes.
      progress: called with the number of steps done since the last call.

    Returns:
      The parameters, and the held-out loss, nats a character.

    Raises:
      UsageError: if a file is damaged or training diverged.
    """
    path = folder / f"{recipe(config, language.name, corpus)}.npz"
    like = jax.eval_shape(language.lm.init, jax.random.key(0))
    if path.exists():
        progress(num_steps(config))
        arrays = run_folder.load_arrays(path)
        loss = float(arrays.pop("loss"))
        return unpacked(arrays, like), loss
    params = _pretrained(config, language, corpus, path.with_suffix(""), progress)
    loss = _held_out_loss(config, language, corpus, params)
    if not np.isfinite(loss):
        raise UsageError(
            f"pretraining of {language.name} diverged: lower --pretraining_rate, found "
            f"{config.pretraining_rate}"
        )
    run_folder.save_arrays(path, packed(params) | {"loss": np.array(loss)})
    run_folder.remove_folder(path.with_suffix(""))
    return params, loss


def packed(params: Params) -> dict[str, np.ndarray]:
    """Returns the arrays of a tree by their number, for an .npz file."""
    return {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(params))}


def unpacked(arrays: dict[str, np.ndarray], like: Params) -> Params:
    """Returns the tree of `packed` arrays; `like` has its structure."""
    leaves = [jnp.asarray(arrays[str(number)]) for number in range(len(arrays))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _learner(config: Config, language: Language) -> training.Learner:
    steps = num_steps(config)
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        config.pretraining_rate,
        max(1, round(WARM_UP * steps)),
        steps,
        0.1 * config.pretraining_rate,
    )
    return training.learner(
        lambda params, frozen, key, tokens: (_loss(language, params, tokens), {}),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
    )


def _loss(language: Language, params: Params, tokens: Array) -> Array:
    """Returns the mean loss of next tokens, nats."""
    log_probs = documents.token_log_probs(language.lm.apply(params, tokens), tokens)
    return -jnp.mean(log_probs[:, 1:])


def _windows(text: Array, starts: Array, length: int) -> Array:
    return jax.vmap(lambda start: jax.lax.dynamic_slice(text, (start,), (length,)))(starts)


def _pretrained(
    config: Config,
    language: Language,
    corpus: Corpus,
    folder: Path,
    progress: Callable[[int], None],
) -> Params:
    """Runs pretraining from its last checkpoint."""
    learner, steps = _learner(config, language), num_steps(config)
    text = jnp.asarray(language.encode(corpus.text), jnp.int32)

    @partial(jax.jit, static_argnums=2, compiler_options=compiler_options())
    def advance(state: Any, text: Array, number: int) -> Any:
        def step(state: training.TrainState, _: Any) -> tuple[training.TrainState, None]:
            key: Key = jax.random.fold_in(jax.random.key(1), state.step)
            shape = (config.pretraining_batch,)
            starts = jax.random.randint(key, shape, 0, len(text) - config.context)
            return learner.step(state, (), _windows(text, starts, config.context))[0], None

        return jax.lax.scan(step, state, None, length=number)[0]

    init = lambda key: learner.init(language.lm.init(key), key)
    state = jax.jit(init, compiler_options=compiler_options())(jax.random.key(0))
    with Checkpoints(folder, parts=("default",), max_to_keep=1) as checkpoints:
        done = checkpoints.newest_sound()
        if done:
            assert_same_software(checkpoints.path(done))
            state = checkpoints.restore(done, {"default": state})["default"]
            progress(done)
        while done < steps:
            number = min(CHUNK, steps - done)
            state = advance(state, text, number)
            done += number
            if done < steps:
                checkpoints.save(done, {"default": state})
            progress(number)
    return state.params


def _held_out_loss(config: Config, language: Language, corpus: Corpus, params: Params) -> float:
    """Returns the loss on windows at equal distances in the held-out text, nats a character."""
    text = jnp.asarray(language.encode(corpus.held_out), jnp.int32)
    length = min(config.context, len(text))
    starts = jnp.linspace(0, len(text) - length, MEASURED).astype(int)
    loss = jax.jit(lambda params, tokens: _loss(language, params, tokens))
    return float(loss(params, _windows(text, starts, length)))
