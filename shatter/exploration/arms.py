"""The two signatures of an arm: an acquisition function that chooses what to ask."""

from typing import Protocol

from shatter.types import Array, Key


class PairArm(Protocol):
    """An arm that chooses the responses of one query, a pair by default, among N candidates.

    The module `pair_sampling` has the arms that draw from one law, `pair_thompson` those that draw
    members, `pair_information`, `pair_optimism` and `pair_design` those that take the best under a
    score. An arm may have further keyword arguments with defaults, for example a temperature.
    """

    def __call__(
        self,
        key: Key,
        log_probs: Array,
        *,
        valid: Array | None = None,
        num_responses: int = 2,
        distinct: bool = True,
    ) -> Array:
        """Returns the candidates to compare.

        Every response is a valid candidate, and none repeats, with two exceptions, which are errors
        under checkify: where fewer candidates than responses are valid, some repeat, and where none
        is valid, all responses are candidate 0. A log-prob of NaN, also an error under checkify,
        counts as impossible to its member.

        Args:
          key: a typed key; an arm that takes the best under a score breaks ties by it.
          log_probs: floating `[M, N]`, nats, each member's log-prob of each candidate, defined up
            to a shift a member; computed in float32 at least.
          valid: bool `[N]`, false on candidates that may not be chosen; all may if None.
          num_responses: K, how many responses the query has.
          distinct: whether the responses must differ.

        Returns:
          int `[K]`, candidate indices.

        Raises:
          AssertionError: if the shapes or types do not fit.
          ValueError: if K is below 2, or the responses must differ and there are fewer than K
            candidates.
        """


class QueryArm(Protocol):
    """An arm that chooses B of Q whole queries, about one prompt or about many.

    The modules `query_sampling` and `query_optimism` have the arms that go by how much the members
    like the responses; they compare utilities across queries, so that each member may have one
    shift only. The arms of `query_information` see a member's choice within each query alone, so
    that a shift a member and query is free. `query_design` has one arm of either kind. An arm may
    have further keyword arguments with defaults.
    """

    def __call__(
        self, key: Key, log_probs: Array, *, valid: Array | None = None, num_queries: int
    ) -> Array:
        """Returns the queries to ask.

        The queries differ, and each has at least two responses. Where fewer can be asked, some
        repeat. A log-prob of NaN counts as impossible to its member. Both are errors under
        checkify.

        Args:
          key: a typed key; an arm that takes the best under a score breaks ties by it, also ties
            up to rounding.
          log_probs: floating `[M, Q, K]`, nats, each member's log-prob (or utility) of every
            response of every query; computed in float32 at least.
          valid: bool `[Q, K]`, false on empty slots; none is empty if None.
          num_queries: B, how many queries to choose.

        Returns:
          int `[B]`, query indices.

        Raises:
          AssertionError: if the shapes or types do not fit.
          ValueError: if there are fewer than B queries or fewer than two slots.
        """
