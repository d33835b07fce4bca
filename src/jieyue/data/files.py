"""From a file to its text: plain or packed (``.gz``, ``.xz``, ``.bz2``, ``.zst``, ``.zip`` of one file), in whatever encoding.

What a file is packed with is told by its first bytes, not by its name. ``read_text`` gives the whole text;
``ByteSource`` reads files that may be larger than memory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from jieyue.errors import InputError, MissingExtra

from .encodings import Encoding, find_encoding, undamaged

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["ByteSource", "FileText", "as_paths", "decode", "read_bytes", "read_text", "warn_if_doubtful"]

_PACKED = ".gz, .xz, .bz2, .zst or .zip"
_POINTER = b"version https://git-lfs.github.com/spec/"
_STRANGE = (  # first bytes of what people name by mistake, and what to do
    (b"PAR1", "a Parquet file", "rows of text", "convert it to JSON lines"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", f"a plain file, {_PACKED}", "unpack it"),
    (b"Rar!", "a RAR archive", f"a plain file, {_PACKED}", "unpack it"),
    (b"SQLite format 3", "an SQLite database", "text", "export it as CSV or JSON lines"),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "text", "export it as CSV"),
    (_POINTER, "a Git LFS pointer, not the data", "the data", "fetch it: git lfs pull"),
    (b"%PDF", "a PDF", "text", "extract its text"),
)
_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class FileText:
    """A file's text, its encoding and what is worth counting. Bytes that do not decode stand in it as lone surrogates."""

    text: str
    encoding: Encoding
    has_bom: bool
    has_crlf: bool


def as_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]


class ByteSource:
    """A file's content as bytes, unpacked while it is read. ``consumed`` of ``num_bytes`` (of the packed file) are read.

    ``InputError`` where the file is absent, cannot be read, is damaged, or is something else than text or a packed text;
    ``MissingExtra`` for ``.zst`` without the package zstandard.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._explained():
            self._raw = self.path.open("rb")
            self.num_bytes = self.path.stat().st_size
            self.start = self._raw.read(512)
            self._raw.seek(0)
            try:
                self._stream = self._unpacked()
            except BaseException:
                self._raw.close()
                raise

    def read(self, count: int = -1) -> bytes:
        """The next ``count`` bytes, b"" at the end; everything without a count."""
        with self._explained():
            return self._stream.read(count)

    @property
    def consumed(self) -> int:
        return min(self._raw.tell(), self.num_bytes)

    def __enter__(self) -> ByteSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._raw.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What reading and unpacking raise, as one line."""
        name = str(self.path)
        try:
            yield
        except FileNotFoundError:
            raise InputError(name, "no such file", f"a file, plain, {_PACKED}") from None
        except _DAMAGED as error:
            raise InputError(name, f"a damaged archive ({error})", f"a whole file, plain, {_PACKED}") from error
        except OSError as error:
            if error.errno is None:  # gzip and bz2 say so about their content
                raise InputError(name, f"a damaged archive ({error})", f"a whole file, plain, {_PACKED}") from error
            raise InputError(name, f"{error.strerror or error}", "a readable file") from error

    def _unpacked(self) -> IO[bytes]:
        name, start = str(self.path), self.start
        for first, found, allowed, do in _STRANGE:
            if start.startswith(first):
                raise InputError(name, found, allowed, do)
        if start[257:262] == b"ustar":
            raise InputError(name, "a tar archive", f"one file, plain, {_PACKED}", "unpack it")
        if start[:2] == b"\x1f\x8b":
            return io.BufferedReader(gzip.GzipFile(fileobj=self._raw))
        if start[:6] == b"\xfd7zXZ\x00":
            return lzma.LZMAFile(self._raw)
        if start[:3] == b"BZh" and start[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
            return bz2.BZ2File(self._raw)
        if start[:4] == b"\x28\xb5\x2f\xfd":
            return io.BufferedReader(_Zstandard(self._raw))
        if start[:4] == b"PK\x03\x04":
            return self._zipped()
        return self._raw

    def _zipped(self) -> IO[bytes]:
        """The one file in a zip archive; what macOS adds beside it does not count."""
        archive = zipfile.ZipFile(self._raw)
        names = [
            name
            for name in archive.namelist()
            if not name.endswith("/") and not name.startswith("__MACOSX/") and name.rpartition("/")[2][:1] != "."
        ]
        if len(names) != 1:
            found = f"{len(names)} files in it: {', '.join(names)[:120]}"
            raise InputError(str(self.path), found, "an archive of one file", "unpack it")
        try:
            return archive.open(names[0])
        except (RuntimeError, NotImplementedError) as error:  # a password, a compression that Python lacks
            raise InputError(str(self.path), str(error), "an archive without password", "unpack it") from error


class _Zstandard(io.RawIOBase):
    """A ``.zst`` file, unpacked; unlike the package's own reader it tells when the file is cut short."""

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtra("zstandard", "data") from None
        self._package, self._raw, self._waiting, self._is_inside = zstandard, raw, b"", False
        self._frame = zstandard.ZstdDecompressor().decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, target: WriteableBuffer) -> int:
        view = memoryview(target).cast("B")
        while not self._waiting:
            packed = b""
            if self._frame.eof:  # another frame may follow
                packed, self._is_inside = self._frame.unused_data, False
                self._frame = self._package.ZstdDecompressor().decompressobj()
            packed = packed or self._raw.read(2**17)
            if not packed:
                if self._is_inside:
                    raise EOFError("it ends in the middle")
                return 0
            self._is_inside = True
            try:
                self._waiting = self._frame.decompress(packed)
            except self._package.ZstdError as error:
                raise EOFError(str(error)) from error
        count = min(len(view), len(self._waiting))
        view[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count


def read_bytes(path: str | Path) -> bytes:
    """The file's content, unpacked. Raises as ``ByteSource`` does."""
    with ByteSource(path) as source:
        return source.read()


def decode(data: bytes, name: str, encoding: str | None = None) -> FileText:
    """Bytes as text; see ``find_encoding`` for how the encoding is found, ``encoding`` decides where given.

    A doubtful encoding is used with a warning. Bytes that do not decode become lone surrogates, so that whoever reads the
    records refuses those alone.
    """
    if data.startswith(_POINTER):
        raise InputError(name, "a Git LFS pointer, not the data", "the data", "fetch it: git lfs pull")
    found = find_encoding(data, name, wanted=encoding)
    warn_if_doubtful(found, name)
    try:
        text = data[found.mark :].decode(found.name, undamaged(found.name))
    except UnicodeDecodeError as error:
        raise InputError(
            name, f"{error.reason} at byte {error.start}", f"{found.name} text", "name its encoding: --encoding"
        ) from error
    return FileText(text, found, found.mark > 0, "\r\n" in text)


def warn_if_doubtful(encoding: Encoding, name: str) -> None:
    """One line where the encoding is a guess: what it is taken for, and what to pass if that is wrong."""
    if not encoding.is_sure:
        warnings.warn(
            f"{name}: not UTF-8; read as {encoding.name}, the likeliest by its characters, but not clearly so; "
            "if the text looks wrong, name its encoding: --encoding",
            stacklevel=2,
        )


def read_text(path: str | Path, encoding: str | None = None) -> FileText:
    """The whole text of a file, unpacked and decoded. Raises as ``ByteSource`` and ``decode`` do. Memory: the file, unpacked."""
    path = Path(path)
    return decode(read_bytes(path), str(path), encoding)
