"""The models that learn to act: a small transformer of our own, or a pretrained one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.agency.config import OWN_MODEL, Config
from experiments.agency.worlds import World, arithmetic_world, library_world
from experiments.common.sources import model_folder
from shatter import environments, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import count_parameters, load_frozen
from shatter.models import LanguageModel
from shatter.types import Array, Params


class Agent(NamedTuple):
    """A model in its world.

    Attributes:
      world: the world, in the model's tokens.
      lm: the model.
      params: those of a pretrained model; None of a transformer of our own.
      context: the largest number of tokens, with the demonstrations of prompting.
    """

    world: World
    lm: LanguageModel
    params: Params | None
    context: int


def make_agent(config: Config) -> Agent:
    """Makes the world and the model.

    Args:
      config: the config.

    Returns:
      The model in its world.

    Raises:
      UsageError: if the model cannot be opened, its context is too short, or it has no tokens for
        what the environment says.
    """
    name = config.model_name_or_path
    if name == OWN_MODEL:
        is_arithmetic = config.environment == "arithmetic"
        world = arithmetic_world(config) if is_arithmetic else library_world(config)
        sizes = models.TransformerConfig(
            vocab_size=len(world.vocabulary),
            max_length=_context(config, world),
            width=config.width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            rope=models.Rope(),
            tied=not is_arithmetic,  # in the library names are copied, those of new questions too
        )
        return Agent(world, models.transformer(sizes), None, sizes.max_length)
    base = load_frozen(model_folder(name, config.data_dir))
    lm = models.transformer(base.config)
    if config.environment == "arithmetic":
        world = arithmetic_world(config)
        lm = restricted(lm, word_tokens(base.tokenizer, world.vocabulary, name))
    else:
        decode = lambda ids: base.tokenizer.decode(ids, skip_special=False)
        world = library_world(config, environments.Codec(base.tokenizer.encode, decode))
    context = _context(config, world)
    needed = context if "prompting" in config.arms else world.limits["max_length"]
    if needed > base.config.max_length:
        raise UsageError(
            f"--model_name_or_path={name} takes {base.config.max_length} tokens, an episode has up "
            f"to {world.limits['max_length']}, and --num_shown={config.num_shown} demonstrations "
            f"before it make {context}: lower --num_shown, leave out the arm prompting, or take "
            "another model"
        )
    return Agent(world, lm, base.params, context)


def _context(config: Config, world: World) -> int:
    """Returns the tokens of the demonstrations of prompting, a question and an episode."""
    return world.limits["max_length"] * (config.num_shown + 1) + world.prompt_room


def word_tokens(tokenizer: models.Tokenizer, words: tuple[str, ...], name: str) -> tuple[int, ...]:
    """Returns a token of a pretrained model for every word: its last that no other has.

    Args:
      tokenizer: the model's.
      words: the words of an environment.
      name: the model's name, for the message.

    Returns:
      Token ids, one a word, each once.

    Raises:
      UsageError: if a word has no token of its own.
    """
    taken: list[int] = []
    for word in words:
        plain = word.strip("<>")
        free = [token for token in tokenizer.encode(plain) if token not in taken]
        if not free:
            raise UsageError(
                f"--model_name_or_path={name}: expected a token for {plain!r} that no other "
                "word of the environment has, found none: take another model"
            )
        taken.append(free[-1])
    return tuple(taken)


def restricted(lm: LanguageModel, ids: tuple[int, ...]) -> LanguageModel:
    """Returns a model of some of another's tokens, renumbered, whose law is the other's among them.

    Args:
      lm: the other model.
      ids: the tokens that are kept; a token of the new model is a place among them.

    Returns:
      The model, on the parameters of the other.
    """
    rows = jnp.asarray(ids, int)

    def apply(params: Params, tokens: Array, *, valid: Array | None = None) -> Array:
        return lm.apply(params, rows[tokens], valid=valid)[..., rows]

    def decode(
        params: Params, cache: Any, tokens: Array, *, valid: Array | None = None
    ) -> tuple[Array, Any]:
        assert lm.decode is not None
        logits, cache = lm.decode(params, cache, rows[tokens], valid=valid)
        return logits[..., rows], cache

    return LanguageModel(
        init=lm.init,
        apply=apply,
        init_cache=lm.init_cache,
        decode=None if lm.decode is None else decode,
        take_cache=lm.take_cache,
    )


def num_parameters(agent: Agent) -> int:
    """Returns the number of parameters that are trained."""
    return count_parameters(jax.eval_shape(agent.lm.init, jax.random.key(0)))
