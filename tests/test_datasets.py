"""Tests of the MNIST loader, including all kinds of damaged files, and of the toy problems."""

import gzip
import hashlib
import http.client
import io
import itertools
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funcnet import datasets
from funcnet.datasets import CHECKOUT, MIRRORS, SHA256, mnist, read_idx, sine, xor

NAMES = list(SHA256)


def idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def arrays(train=3, test=2):
    """Small arrays in the form of MNIST; sets and positions all differ, so that mix-ups show."""
    for n in (train, test):
        yield (np.arange(n * 784).reshape(n, 28, 28) * 37 + n) % 251
        yield (np.arange(n) * 7 + n) % 10


def write(directory, *, compress=True, **kwargs):
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, arrays(**kwargs), strict=True):
        content = idx(array)
        path = directory / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(content) if compress else content)
    return directory


@pytest.fixture(autouse=True)
def no_other_source(monkeypatch, tmp_path):
    """Isolates tests from the user's settings and the network; a download fails with its URL."""

    def refuse(url, timeout):
        raise urllib.error.URLError(f"a test asked for {url}")

    monkeypatch.delenv("FUNCNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# The real data


@pytest.mark.parametrize("name", NAMES)
def test_committed_files_are_the_original(name):
    content = gzip.decompress((CHECKOUT / f"{name}.gz").read_bytes())
    assert hashlib.sha256(content).hexdigest() == SHA256[name]
    assert SHA256[name] in (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_mnist():
    data = mnist()
    assert [(a.shape, str(a.dtype)) for a in data] == [
        ((60000, 28, 28), "uint8"),
        ((60000,), "int32"),
        ((10000, 28, 28), "uint8"),
        ((10000,), "int32"),
    ]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # of digits 0 to 9
    assert np.bincount(data.train_labels).tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(data.test_labels).tolist() == counts
    # The first label is a 5 and the last an 8; the mean grey value is known to be 0.1307 of white.
    assert data.train_labels[[0, -1]].tolist() == [5, 8]
    assert data.test_labels[[0, -1]].tolist() == [7, 6]
    assert round(data.train_images.mean() / 255, 4) == 0.1307
    assert data.train_images[0, 5, 12:16].tolist() == [3, 18, 18, 18]


# Search order of the files


def assert_is(data, **kwargs):
    for found, expected in zip(data, arrays(**kwargs), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.flags.writeable


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("as_type", [str, Path])
def test_directory(tmp_path, compress, as_type):
    assert_is(mnist(as_type(write(tmp_path / "data", compress=compress))))


def test_a_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data")
    assert_is(mnist("~/data"))


def test_plain_file_is_preferred_and_both_may_mix(tmp_path):
    write(tmp_path, compress=False)
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(b"not read")
    (tmp_path / NAMES[1]).write_bytes(gzip.compress((tmp_path / NAMES[1]).read_bytes()))
    assert_is(mnist(tmp_path))


def test_search_order(tmp_path, monkeypatch):
    """Each source holds a different number of images and is hidden by the source before it."""
    cache = write(tmp_path / "cache" / "funcnet" / "mnist", train=4)
    checkout = write(tmp_path / "checkout", train=5)
    named = write(tmp_path / "named", train=6)
    given_ = write(tmp_path / "given", train=7)
    monkeypatch.setattr(datasets, "CHECKOUT", checkout)
    monkeypatch.setenv("FUNCNET_DATA", str(named))
    assert_is(mnist(given_), train=7)
    assert_is(mnist(), train=6)
    monkeypatch.setenv("FUNCNET_DATA", "")
    assert_is(mnist(), train=5)
    shutil.rmtree(checkout)
    assert_is(mnist(), train=4)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    cache.parent.parent.rename(tmp_path / ".cache")
    assert_is(mnist(), train=4)


@pytest.mark.parametrize("missing", NAMES)
@pytest.mark.parametrize("source", ["argument", "variable", "checkout"])
def test_a_missing_file_is_not_looked_for_elsewhere(tmp_path, monkeypatch, source, missing):
    directory = write(tmp_path / "data")
    write(tmp_path / "cache" / "funcnet" / "mnist")
    (directory / f"{missing}.gz").unlink()
    (directory / missing).mkdir()  # some archives unpack to a folder of this name
    if source == "variable":
        monkeypatch.setenv("FUNCNET_DATA", str(directory))
    if source == "checkout":
        monkeypatch.setattr(datasets, "CHECKOUT", directory)
    with pytest.raises(FileNotFoundError) as caught:
        mnist(directory if source == "argument" else None)
    one_line(caught, f"mnist: {directory} must hold {missing} or {missing}.gz")


@pytest.mark.parametrize("directory", ["nowhere", ""])
def test_no_such_directory(tmp_path, monkeypatch, directory):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=NAMES[0]):
        mnist(directory)


# The download


class Mirror:
    """Replaces `urllib.request.urlopen`: answers with bytes or an error from a dict by URL."""

    def __init__(self, monkeypatch, tmp_path, answers):
        self.answers, self.asked = answers, []
        self.cache = tmp_path / "cache" / "funcnet" / "mnist"
        monkeypatch.setattr(datasets, "CHECKOUT", tmp_path / "nowhere")
        monkeypatch.setattr(urllib.request, "urlopen", self)
        sums = (hashlib.sha256(idx(a)).hexdigest() for a in arrays())
        monkeypatch.setattr(datasets, "SHA256", dict(zip(NAMES, sums, strict=True)))

    def __call__(self, url, timeout):
        assert timeout > 0
        self.asked.append(url)
        answer = self.answers[url]
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    def kept(self):
        return sorted(p.name for p in self.cache.rglob("*")) if self.cache.exists() else []


def good():
    files = {f"{name}.gz": gzip.compress(idx(a)) for name, a in zip(NAMES, arrays(), strict=True)}
    return {mirror + name: data for mirror in MIRRORS for name, data in files.items()}


def test_download_once(monkeypatch, tmp_path):
    mirror = Mirror(monkeypatch, tmp_path, good())
    assert_is(mnist())
    assert mirror.asked == [f"{MIRRORS[0]}{name}.gz" for name in NAMES]
    assert mirror.kept() == sorted(f"{name}.gz" for name in NAMES)
    assert_is(mnist())
    assert len(mirror.asked) == 4


OTHER = gzip.compress(idx(np.zeros((3, 28, 28))))
FAILURES = {
    "another content": (OTHER, "SHA-256 must be"),
    "a cut file": (good()[f"{MIRRORS[0]}{NAMES[0]}.gz"][:-9], "must be a whole gzip file"),
    "a web page": (b"<html>log in</html>", "SHA-256 must be"),
    "nothing": (b"", "SHA-256 must be"),
    "an HTTP error": (urllib.error.URLError("no such host"), "no such host"),
    "a timeout": (TimeoutError("timed out"), "timed out"),
    "a broken connection": (http.client.IncompleteRead(b"12"), "IncompleteRead"),
    "an error of two lines": (OSError("first\nsecond"), "first second"),
}


@pytest.mark.parametrize(("answer", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failed_download_leaves_no_file(monkeypatch, tmp_path, answer, reason):
    bad = f"{NAMES[2]}.gz"
    mirror = Mirror(monkeypatch, tmp_path, good() | {m + bad: answer for m in MIRRORS})
    with pytest.raises(FileNotFoundError) as caught:
        mnist()
    one_line(caught, f"mnist: could not download {bad}", "FUNCNET_DATA", reason)
    one_line(caught, *(mirror + bad for mirror in MIRRORS))
    assert mirror.kept() == sorted(f"{name}.gz" for name in NAMES[:2])  # the first two files


@pytest.mark.parametrize(("answer", "reason"), FAILURES.values(), ids=FAILURES)
def test_the_next_mirror_is_asked(monkeypatch, tmp_path, answer, reason):
    bad = f"{MIRRORS[0]}{NAMES[2]}.gz"
    mirror = Mirror(monkeypatch, tmp_path, good() | {bad: answer})
    assert_is(mnist())
    assert mirror.asked[2:4] == [bad, f"{MIRRORS[1]}{NAMES[2]}.gz"]


def test_a_full_disk_leaves_no_part_of_a_file(monkeypatch, tmp_path):
    mirror = Mirror(monkeypatch, tmp_path, good())
    write_bytes = Path.write_bytes

    def full(path, data):
        write_bytes(path, data[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        mnist()
    assert mirror.kept() == []


def test_a_damaged_cache_is_an_error(monkeypatch, tmp_path):
    mirror = Mirror(monkeypatch, tmp_path, good())
    mnist()
    path = mirror.cache / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="whole gzip file") as caught:
        mnist()
    one_line(caught, path)


# Damaged files


IMAGES = next(arrays()).astype(np.uint8)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (2, 3), (4, 0, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_read_idx_of_any_rank(tmp_path, shape, compress):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.uint8)
    (tmp_path / "file").write_bytes(compress(idx(array)))
    found = read_idx(tmp_path / "file")
    assert (found.shape, found.dtype, found.flags.writeable) == (shape, np.uint8, True)
    np.testing.assert_array_equal(found, array)


PLAIN = idx(IMAGES)
GZIP = gzip.compress(PLAIN)
DAMAGED = {
    "empty": (b"", "must begin as IDX, 00 00, got "),
    "one byte": (b"\0", "must begin as IDX, 00 00, got 00"),
    "three bytes": (b"\0\0\x08", "must begin as IDX, 00 00, got 00 00 08"),
    "text": (b"<html>", "must begin as IDX, 00 00, got 3c 68 74 6d"),
    "only the first zero": (b"\0\1" + PLAIN[2:], "must begin as IDX, 00 00, got 00 01 08 03"),
    "floats": (b"\0\0\x0d" + PLAIN[3:], "must hold unsigned bytes, type 08, got 0d"),
    "signed bytes": (b"\0\0\x09" + PLAIN[3:], "must hold unsigned bytes, type 08, got 09"),
    "cut header": (PLAIN[:15], "must have a header of 16 bytes, got 15"),
    "cut": (
        PLAIN[:-1],
        "must have 2352 bytes after its header, for the shape (3, 28, 28), got 2351",
    ),
    "only the header": (PLAIN[:16], "must have 2352 bytes after its header"),
    "a byte too many": (PLAIN + b"\0", "(3, 28, 28), got 2353"),
    "little endian": (PLAIN[:4] + b"\3\0\0\0" + PLAIN[8:], "for the shape (50331648, 28, 28)"),
    "a rank too high": (b"\0\0\x08\x46" + b"\0\0\0\1" * 70 + b"x", "NumPy cannot hold"),
    "sizes too large": (b"\0\0\x08\x04" + b"\0\0\0\0" + b"\xff" * 12, "NumPy cannot hold"),
    "gzip, cut": (GZIP[:-1], "must be a whole gzip file"),
    "gzip, half": (GZIP[: len(GZIP) // 2], "must be a whole gzip file"),
    "gzip, only its first bytes": (GZIP[:2], "must be a whole gzip file"),
    "gzip, wrong sum": (GZIP[:-8] + bytes([GZIP[-8] ^ 1]) + GZIP[-7:], "must be a whole gzip file"),
    "gzip, wrong length": (GZIP[:-1] + b"\1", "must be a whole gzip file"),
    "gzip, and more": (GZIP + b"more", "must be a whole gzip file"),
    "gzip of a cut file": (gzip.compress(PLAIN[:-1]), "(3, 28, 28), got 2351"),
    "gzip of gzip": (gzip.compress(GZIP), "must begin as IDX, 00 00, got 1f 8b 08"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged(tmp_path, content, message):
    directory = write(tmp_path, compress=False)
    path = directory / NAMES[0]
    path.write_bytes(content)
    for read in (lambda: read_idx(path), lambda: mnist(directory)):
        with pytest.raises(ValueError, match="read_idx: ") as caught:
            read()
        one_line(caught, f"read_idx: {path} ", message)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_idx(tmp_path / "nothing")
    one_line(caught, tmp_path / "nothing")


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("shape", [(4,), (2,), (0,), (3, 1), ()])
def test_labels_that_do_not_fit_the_images(tmp_path, labels, shape):
    """The training set has three images, the test set two."""
    if shape == (2,) and labels == 3:
        shape = (3,)
    write(tmp_path)
    path = tmp_path / f"{NAMES[labels]}.gz"
    path.write_bytes(idx(np.zeros(shape)))
    with pytest.raises(ValueError, match="one label for each") as caught:
        mnist(tmp_path)
    one_line(
        caught, f"mnist: {path} must hold one label for each of the {3 if labels == 1 else 2} "
    )
    one_line(caught, tmp_path / f"{NAMES[labels - 1]}.gz", f"got shape {shape}")


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("shape", [(3,), (3, 784), (3, 28, 28, 1), ()])
def test_images_of_another_rank(tmp_path, images, shape):
    write(tmp_path)
    path = tmp_path / f"{NAMES[images]}.gz"
    path.write_bytes(idx(np.zeros(shape)))
    with pytest.raises(ValueError, match="rank 3") as caught:
        mnist(tmp_path)
    one_line(caught, f"mnist: {path} must hold images, rank 3, got shape {shape}")


def test_swapped_files_are_an_error(tmp_path):
    """Exchanging any two of the four files gives a wrong rank or a wrong number of examples."""
    for a, b in itertools.combinations(NAMES, 2):
        write(tmp_path)
        first, second = tmp_path / f"{a}.gz", tmp_path / f"{b}.gz"
        first.write_bytes((second.read_bytes(), second.write_bytes(first.read_bytes()))[0])
        with pytest.raises(ValueError, match="mnist: "):
            mnist(tmp_path)


small = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@given(
    compress=st.booleans(),
    cut=st.integers(0, 3),
    flips=st.lists(st.tuples(st.integers(0, 63), st.integers(1, 255)), max_size=3),
    tail=st.binary(max_size=3),
)
def test_any_damage_is_an_error_or_harmless(compress, cut, flips, tail):
    """Flipped, missing or added bytes give a one-line error with the file's name, or a valid array.

    gzip has a checksum, so an array that is read must be the original. A plain file has none, so
    flipped pixels must come back as they are, in an array of the size of the file.
    """
    content = bytearray(gzip.compress(idx(small), mtime=0) if compress else idx(small))
    content = content[: len(content) - cut] + tail
    for i, mask in flips:
        content[i % len(content)] ^= mask
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file-idx3-ubyte"
        path.write_bytes(content)
        try:
            found, message = read_idx(path), None
        except ValueError as e:
            found, message = None, str(e)
    if message is not None:
        assert message.startswith(f"read_idx: {path} ")
        assert "\n" not in message
    elif compress and content[:2] == b"\x1f\x8b":
        np.testing.assert_array_equal(found, small)
    else:
        assert found.tobytes() == bytes(content[4 + 4 * content[3] :])


# The toy problems


def test_xor():
    x, labels = xor()
    assert (x.dtype, labels.dtype) == (np.float32, np.int32)
    assert [(int(a) ^ int(b)) for a, b in x] == labels.tolist()
    assert len({tuple(p) for p in x.tolist()}) == 4


def test_sine():
    x, t = sine(5)
    assert (x.shape, t.shape, x.dtype, t.dtype) == ((5, 1), (5, 1), np.float32, np.float32)
    np.testing.assert_array_equal(x[:, 0], [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(t[:, 0], [0, -1, 0, 1, 0], atol=2e-7)  # π is rounded to float32


def test_arguments_of_another_kind():
    for call, message in [
        (lambda: mnist(3), "mnist: directory must be a path, got 3"),
        (lambda: read_idx(None), "read_idx: path must be a path, got None"),
        (lambda: sine("10"), "sine: n must be an integer of at least 1, got '10'"),
        (lambda: sine(2.5), "sine: n must be an integer of at least 1, got 2.5"),
        (lambda: sine(0), "sine: n must be an integer of at least 1, got 0"),
    ]:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert str(caught.value) == message
