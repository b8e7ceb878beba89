"""What a run prints: its own messages, not those of the libraries below it."""

import logging
import os
import sys
import threading
import warnings
from pathlib import Path

from absl import logging as absl_logging
from tqdm import tqdm


def set_up_terminal() -> None:
    """Sends the package's messages to stderr and silences its libraries.

    Call before tensorflow is imported. What goes wrong in a library reaches the user as an
    exception; Orbax logs it, with its traceback, for every thread that it passes as well.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announces itself otherwise
    warnings.simplefilter("ignore", category=DeprecationWarning)
    # On a terminal a message replaces the progress line, which is drawn again after it.
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""
    logging.basicConfig(level=logging.ERROR, format=f"{erase}%(message)s", force=True)
    logging.getLogger("corm_jax").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.FATAL)
    # It logs the other writes of a save that failed, which Orbax abandons, as never retrieved.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
    # Bars are drawn by one process. tqdm's own lock is shared by processes, and Python complains of
    # it as leaked where one of them is killed.
    tqdm.set_lock(threading.RLock())
    sys.unraisablehook = _hide_abandoned_coroutines


def hide_native_stdout() -> None:
    """Keeps what libraries in C++ print out of stdout, which stays Python's alone.

    Gloo, by which processes on CPUs exchange arrays, announces every rank there.
    """
    sys.stdout.flush()
    own = os.dup(sys.stdout.fileno())
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding)


def _hide_abandoned_coroutines(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hides what is left of a save or restore that failed.

    Orbax abandons the other reads and writes of it: they end in a closed event loop, or are
    thrown away half-way. The failure itself is raised as usual.
    """
    code = getattr(unraisable.object, "cr_code", None)
    of_orbax = code is not None and "orbax" in code.co_filename
    if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
