"""Data sets as NumPy arrays: MNIST from its IDX files, and the toy problems of the sources.

An IDX file consists of a header and the values in C order. The header has two zero bytes, the type
of the values (0x08: unsigned bytes), the rank r, and r sizes as big-endian 32-bit integers. A
reader that trusts the header returns garbage from a damaged file, so `read_idx` requires that the
sizes account for every byte.
"""

import gzip
import hashlib
import http.client
import math
import os
import tempfile
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from funcnet._arguments import check_int, describe

__all__ = ["SHA256", "Mnist", "mnist", "read_idx", "sine", "xor"]

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The names of the MNIST files, and the SHA-256 of their uncompressed content."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
CHECKOUT = Path(__file__).resolve().parent.parent / "experiments" / "data" / "mnist"


class Mnist(NamedTuple):
    """Images as stored in the files, with pixels 0 (paper) to 255 (ink), and labels 0 to 9.

    Raw bytes take a quarter of the memory of float32, also on a device: convert each batch, not the
    whole data set. Labels are int32 because it is JAX's default integer type.
    """

    train_images: np.ndarray  # uint8 (60000, 28, 28)
    train_labels: np.ndarray  # int32 (60000,)
    test_images: np.ndarray  # uint8 (10000, 28, 28)
    test_labels: np.ndarray  # int32 (10000,)


def mnist(directory: str | os.PathLike[str] | None = None) -> Mnist:
    """Loads the MNIST data set of handwritten digits, or another one in the same file format.

    The files are read from the first of these locations that is available. If one of the files is
    missing there, an error is raised, and the next location is not tried:

    1. `directory`;
    2. the environment variable FUNCNET_DATA;
    3. `experiments/data/mnist`, if funcnet is imported from a checkout;
    4. a cache in XDG_CACHE_HOME or ~/.cache, filled by a download of 11 MB at the first call. A
       file is cached only if its SHA-256 equals that of the original.

    Args:
      directory: A folder with the four files named in `SHA256`, plain or gzipped (`.gz`). Their
        hashes are not checked, so that data sets in the same format (Fashion-MNIST) can be loaded.

    Returns:
      Four arrays; see `Mnist`.

    Raises:
      FileNotFoundError: If a file is missing, or no mirror delivers it. The message names the file.
      ValueError: If a file is damaged or does not hold images or labels, or the numbers of images
        and labels differ. The message names the file.
      TypeError: If directory is not a path.

    Reference: LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document
    recognition, 1998.
    """
    if directory is None:
        directory = os.environ.get("FUNCNET_DATA") or None
    if directory is not None:
        _check_path("mnist", "directory", directory)
        paths = [_find(Path(directory).expanduser(), name) for name in SHA256]
    elif CHECKOUT.is_dir():
        paths = [_find(CHECKOUT, name) for name in SHA256]
    else:
        paths = [_cached(name) for name in SHA256]
    return Mnist(*_read_pair(*paths[:2]), *_read_pair(*paths[2:]))


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, of any rank.

    Args:
      path: The file. Gzip is recognised by the first two bytes, whatever the name.

    Returns:
      A uint8 array with the shape that the header gives.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is not a complete IDX file of unsigned bytes. The message names the file.
      TypeError: If path is not a path.
    """
    _check_path("read_idx", "path", path)
    content = _decompress(Path(path).read_bytes(), f"read_idx: {path}")
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"read_idx: {path} must begin as IDX, 00 00, got {content[:4].hex(' ')}")
    kind, rank = content[2], content[3]
    if kind != 0x08:
        raise ValueError(f"read_idx: {path} must hold unsigned bytes, type 08, got {kind:02x}")
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(
            f"read_idx: {path} must have a header of {start} bytes, got {len(content)}"
        )
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"read_idx: {path} must have {math.prod(shape)} bytes after its header, for the shape "
            f"{shape}, got {len(content) - start}"
        )
    try:
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
    except ValueError as e:  # 65 axes, or sizes such as (0, 2³², 2³²)
        raise ValueError(f"read_idx: {path} has a shape that NumPy cannot hold: {e}") from None


def xor() -> tuple[np.ndarray, np.ndarray]:
    """The four points of XOR, whose classes no straight line separates, and their labels.

    Returns:
      Points, float32 (4, 2), and labels, int32 (4,).

    Reference: Source A 2.2.

    >>> xor()[1].tolist()
    [0, 1, 1, 0]
    """
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    return x, np.array([0, 1, 1, 0], np.int32)


def sine(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A curve for regression, t = sin πx at n equally spaced x in [−1, 1].

    Args:
      n: The number of points, at least 1.

    Returns:
      x and t, both float32 (n, 1).

    Raises:
      TypeError: If n is not an integer.
      ValueError: If it is less than 1.

    Reference: Source B 5.5.7.

    >>> sine(3)[0].ravel().tolist()
    [-1.0, 0.0, 1.0]
    """
    n = check_int("sine", "n", n, at_least=1)
    x = np.linspace(-1, 1, n, dtype=np.float32)[:, None]
    return x, np.sin(np.pi * x)


def _check_path(function: str, name: str, path: object) -> None:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{function}: {name} must be a path, got {describe(path)}")


def _find(directory: Path, name: str) -> Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"mnist: {directory} must hold {name} or {name}.gz, but has neither")


def _read_pair(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3:
        raise ValueError(f"mnist: {images_path} must hold images, rank 3, got shape {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"mnist: {labels_path} must hold one label for each of the {len(images)} images of "
            f"{images_path}, got shape {labels.shape}"
        )
    return images, labels.astype(np.int32)


def _decompress(data: bytes, where: str) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as e:
        raise ValueError(f"{where} must be a whole gzip file, got: {e}") from None


def _cached(name: str) -> Path:
    """Returns the path of the file in the cache, after downloading it if necessary."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "funcnet" / "mnist"
    path = cache / f"{name}.gz"
    if path.is_file():
        return path
    data = _download(path.name, SHA256[name])
    cache.mkdir(parents=True, exist_ok=True)
    # Another process may download too, and this one may be killed: rename only a complete file.
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        part = Path(partial) / path.name
        part.write_bytes(data)
        os.replace(part, path)
    return path


def _download(name: str, sha256: str) -> bytes:
    """Downloads the file from the first mirror whose copy has this SHA-256."""
    failures = []
    for mirror in MIRRORS:
        url = mirror + name
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                data = response.read()
            found = hashlib.sha256(_decompress(data, "the answer")).hexdigest()
            if found == sha256:
                return data
            failures.append(f"{url}: SHA-256 must be {sha256}, got {found}")
        except (OSError, http.client.HTTPException, ValueError) as e:
            failures.append(f"{url}: {' '.join(str(e).split())}")
    raise FileNotFoundError(
        f"mnist: could not download {name}; give a directory or set FUNCNET_DATA "
        f"({'; '.join(failures)})"
    )
