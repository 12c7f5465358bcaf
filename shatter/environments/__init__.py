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
    library_words,
)
from shatter.environments.programs import ProgramState, in_program
from shatter.environments.rollouts import rollout, scripted_rollout
from shatter.environments.texts import Codec, Tokens, as_tokens, character_codec, join, word_codec

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
    "ProgramState",
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
    "in_program",
    "join",
    "library",
    "library_expert",
    "library_words",
    "make_corpus",
    "on_host",
    "rollout",
    "scripted_rollout",
    "word_codec",
]
