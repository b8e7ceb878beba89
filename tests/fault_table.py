"""The table of the fault suite: what was done to runs, how often, and what it cost them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

PROPERTY = "fault"  # of a test's report, which reaches the process that prints


def recorder(
    record_property: Callable[[str, Any], None],
) -> Callable[[str], contextlib.AbstractContextManager[list[int]]]:
    """Returns fault -> context, which gives a list: append the steps that each attempt lost.

    Steps are lost that were taken and had to be taken again. An error in the context means that
    none of its attempts was survived.
    """

    @contextlib.contextmanager
    def record(fault: str) -> Iterator[list[int]]:
        lost: list[int] = []
        survived = False
        try:
            yield lost
            survived = True
        finally:
            record_property(PROPERTY, [fault, survived, lost])

    return record


def table(properties: list[tuple[str, Any]]) -> list[str]:
    """Returns the lines of the table; none if there are no faults.

    Args:
      properties: of the reports of tests, as `recorder` makes them.
    """
    attempts: dict[str, list[tuple[bool, list[int]]]] = {}
    for name, value in properties:
        if name == PROPERTY:
            fault, survived, lost = value
            attempts.setdefault(fault, []).append((survived, lost or [0]))
    lines = [f"{'fault':<52}{'tried':>6}{'survived':>10}{'steps lost':>12}{'at most':>9}"]
    for fault, found in sorted(attempts.items()):
        tried = sum(len(lost) for _, lost in found)
        survivors = sum(len(lost) for survived, lost in found if survived)
        steps = [number for _, lost in found for number in lost]
        lines.append(f"{fault:<52}{tried:>6}{survivors:>10}{sum(steps):>12}{max(steps):>9}")
    return lines if attempts else []
