"""The one place that imports tensorflow: it reads data and leaves accelerators to jax."""

import ctypes
import os
import platform

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announces itself otherwise

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

# Parameters of glibc's mallopt(3) and their values in bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES, MMAP_BYTES = 1 << 30, 32 << 20  # the largest that glibc takes for the second


def _keep_freed_memory() -> None:
    """Lets malloc keep the buffers of decoded images for the next ones.

    By default it returns each to the system and gets it again, page by page, which costs a tenth
    of the time of an image. Where the C library is not glibc nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


_keep_freed_memory()

__all__ = ["tf"]
