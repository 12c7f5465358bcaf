"""How a campaign counts: tried, held, failed, and one small input of each kind of failure."""

import traceback
from collections.abc import Callable
from typing import Any

SHOWN = 4  # inputs of a kind in the message


class Tally:
    """The counts of a campaign; `settle` fails if anything did.

    Attributes:
      name: of the campaign.
      tried: how many inputs.
      faults: kind of failure -> the inputs that had it, as texts.
    """

    def __init__(self, name: str, record: Callable[[str, object], None]):
        self.name, self.tried = name, 0
        self.faults: dict[str, list[str]] = {}
        self._record = record

    def add(self, given: Any, fault: str | None) -> None:
        """Counts an input, which held if there is no fault."""
        self.tried += 1
        if fault is not None:
            print(f"\ncampaign {self.name}: {fault}: {given!r:.300}")
            self.faults.setdefault(fault, []).append(f"{given!r}")

    def settle(self) -> None:
        """Says the counts; raises if an input failed, with the smallest ones of each kind."""
        failed = sum(map(len, self.faults.values()))
        counts = f"{self.tried} tried, {self.tried - failed} held, {failed} failed"
        self._record("campaign", f"{self.name}: {counts}")
        print(f"\ncampaign {self.name}: {counts}")
        kinds = [
            f"{len(inputs)} x {fault}"
            + "".join(f"\n    {some[:300]}" for some in _smallest(inputs))
            for fault, inputs in sorted(self.faults.items())
        ]
        assert not self.faults, "\n".join([f"{self.name}: {counts}", *kinds])


def _smallest(inputs: list[str]) -> list[str]:
    return sorted(inputs, key=len)[:SHOWN]


def fault_of(
    call: Callable[[], object],
    *,
    refusals: type[Exception] | tuple[type[Exception], ...],
    naming: tuple[str, ...] = (),
) -> str | None:
    """What is wrong with how a call ended.

    Args:
      call: what is tried.
      refusals: the exceptions with which it may refuse.
      naming: texts of which the message of a refusal has at least one.

    Returns:
      None if it returned or refused as it should; else the kind of failure.
    """
    try:
        call()
    except refusals as error:
        if naming and not any(name in str(error) for name in naming):
            return "the message names neither the field nor the file"
    except Exception as error:
        return kind_of(error)
    return None


def kind_of(error: Exception) -> str:
    """An unexpected exception: its type, and where in our code it came from."""
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/shatter/" in frame.filename or "/experiments/" in frame.filename
        if "site-packages" not in frame.filename and "/tests/" not in frame.filename
    ]
    where = f" in {ours[-1].name} of {ours[-1].filename.rpartition('/')[2]}" if ours else ""
    return f"{type(error).__name__}{where}"
