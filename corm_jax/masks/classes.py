"""Which class an image is of, as far as its file name tells."""

import re

import numpy as np

NO_CLASS = "(no class in the name)"
WNID = re.compile(r"n\d{8}(?!\d)")


def class_of(file_name: str) -> str:
    """Returns the class that a file name tells, `NO_CLASS` if it tells none.

    It is the WordNet id that the name begins with (n01440764_10026.JPEG), else the directory that
    the file is in (Bengal/17).
    """
    directory, _, name = file_name.rpartition("/")
    wnid = WNID.match(name)
    return wnid[0] if wnid else directory.rpartition("/")[2] or NO_CLASS


def group(file_names: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Groups images by class.

    Args:
      file_names: bytes [N].

    Returns:
      (names of the classes, in alphabetic order; int64 [N], the number of each image's class)
    """
    texts = (name.decode("utf-8", "backslashreplace") for name in file_names.tolist())
    names = [class_of(text) for text in texts]
    classes, numbers = np.unique(np.array(names, np.str_), return_inverse=True)
    return classes.tolist(), numbers
