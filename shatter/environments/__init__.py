"""Text environments with tools, rolled out inside a program or driven from the host."""

from shatter.environments.arithmetic import (
    ArithmeticConfig,
    ArithmeticState,
    arithmetic,
    arithmetic_expert,
)
from shatter.environments.arithmetic_words import (
    ARITHMETIC_END,
    ARITHMETIC_VOCABULARY,
    expression_value,
)
from shatter.environments.base import Environment, HostEnvironment, Transcript
from shatter.environments.corpus import SPLITS, Corpus, Evidence, Question, make_corpus
from shatter.environments.host import host_rollout, host_scripted_rollout, on_host
from shatter.environments.library import (
    LIBRARY_ALPHABET,
    LIBRARY_END,
    LibraryState,
    library,
    library_expert,
)
from shatter.environments.rollouts import rollout, scripted_rollout
from shatter.environments.texts import Codec, Tokens, as_tokens, character_codec, join

__all__ = [
    "ARITHMETIC_END",
    "ARITHMETIC_VOCABULARY",
    "LIBRARY_ALPHABET",
    "LIBRARY_END",
    "SPLITS",
    "ArithmeticConfig",
    "ArithmeticState",
    "Codec",
    "Corpus",
    "Environment",
    "Evidence",
    "HostEnvironment",
    "LibraryState",
    "Question",
    "Tokens",
    "Transcript",
    "arithmetic",
    "arithmetic_expert",
    "as_tokens",
    "character_codec",
    "expression_value",
    "host_rollout",
    "host_scripted_rollout",
    "join",
    "library",
    "library_expert",
    "make_corpus",
    "on_host",
    "rollout",
    "scripted_rollout",
]
