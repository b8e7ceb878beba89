"""Pictures of pairs, made in the background."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

Maker = Callable[[int], list[bytes]]  # number of a pair -> PNG files, one of each top image


class Pictures:
    """Pictures of the pairs that are looked at, and of those that come next.

    Each kind has a thread of its own, so that quick ones need not wait for slow ones.
    """

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        """Starts the threads.

        Args:
          makers: kind -> what makes it.
        """
        self.kinds = tuple(makers)
        self._makers = makers
        self._pools = {kind: ThreadPoolExecutor(1, thread_name_prefix=kind) for kind in makers}
        self._futures: dict[tuple[str, int], Future[list[bytes]]] = {}
        self._lock = threading.Lock()

    def show(self, numbers: Sequence[int]) -> None:
        """Has the pictures of these pairs made, in this order; others are forgotten."""
        with self._lock:
            for key, future in list(self._futures.items()):
                # What has not begun must not come before the first pair.
                if key[1] != numbers[0] and (future.cancel() or key[1] not in numbers):
                    del self._futures[key]
            for number in numbers:
                for kind in self.kinds:
                    self._get(kind, number)

    def get(self, kind: str, number: int) -> Future[list[bytes]]:
        """Returns pictures of a pair, which may not be ready yet, or be forgotten before."""
        with self._lock:
            return self._get(kind, number)

    def _get(self, kind: str, number: int) -> Future[list[bytes]]:
        key = kind, number
        if key not in self._futures:
            self._futures[key] = self._pools[kind].submit(self._makers[kind], number)
        return self._futures[key]

    def close(self) -> None:
        """Ends the threads; waits for the pictures that are being made."""
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
