"""Unpacks files: yields their content as UTF-8 in blocks, in bounded memory.

A file may be packed (gzip, zstd, bzip2, xz) and its text may be in another Unicode encoding.
`first_bytes.py` says which.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

BLOCK_BYTES = 1 << 20
"""Bytes read at a time from plain files and most archives."""

# Compressed bytes given to zstd at a time: what a bomb makes of them still fits in memory.
_ZSTD_BYTES = 4096
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_XZ_MAGIC = b"\xfd7zXZ\x00"
# A dictionary of xz is as large as its maker liked; the largest that xz -9 makes has 64 MiB.
_XZ_MEMORY_BYTES = 512 << 20


def compression_of(beginning: bytes) -> str | None:
    """Return "gzip", "zstd", "bzip2" or "xz" by the first bytes of a file, or None."""
    if beginning.startswith(b"\x1f\x8b"):
        return "gzip"
    # Parallel packers begin with a frame to be skipped, one of sixteen kinds.
    is_skipped = beginning[1:4] == b"\x2a\x4d\x18" and beginning[0] >> 4 == 5
    if is_skipped or beginning.startswith(_ZSTD_MAGIC):
        return "zstd"
    # A digit for the size of blocks, and then a block or the end.
    if beginning[:3] == b"BZh" and beginning[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    return "xz" if beginning.startswith(_XZ_MAGIC) else None


def read_blocks(
    path: str, compression: str | None, start: int = 0, encoding: str = "utf-8"
) -> Iterator[bytes]:
    """Yield the unpacked content of a file in blocks.

    Args:
        path: The file.
        compression: One of `compression_of`.
        start: First byte; only plain files start elsewhere than at 0.
        encoding: What the text is in. Another one than "utf-8" is recoded to it.

    Raises:
        EOFError: after what could be read of a truncated or damaged archive.
    """
    blocks = _unpacked(path, compression, start)
    yield from blocks if encoding == "utf-8" else _recoded(blocks, encoding)


def _unpacked(path: str, compression: str | None, start: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        if compression == "gzip":
            yield from _gzip_blocks(file)
        elif compression == "zstd":
            yield from _zstd_blocks(file)
        elif compression == "bzip2":
            yield from _blocks_of_streams(file, bz2.BZ2Decompressor)
        elif compression == "xz":
            yield from _blocks_of_streams(file, _xz_decompressor)
        else:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                yield block


def _recoded(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8")
    yield decoder.decode(b"", final=True).encode("utf-8")


def _gzip_blocks(file: BinaryIO) -> Iterator[bytes]:
    with gzip.open(file) as stream:
        try:
            # Not `read`, which loses what it had before an error.
            while block := stream.read1(BLOCK_BYTES):
                yield block
        except (OSError, zlib.error) as error:
            raise EOFError(str(error)) from error


def _zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Unpack frame by frame: the module's own reader stops silently at a truncated end."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as zstd --long=31
    frame = None
    while packed := file.read(_ZSTD_BYTES):
        while packed:
            frame = frame or decompressor.decompressobj()
            try:
                block = frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            if block:
                yield block

            # The next frame begins in what this one left over.
            packed = b""
            if frame.eof:
                packed = frame.unused_data
                frame = None
    if frame is not None:
        raise EOFError("the last frame is cut short")


def _xz_decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_BYTES)


def _blocks_of_streams(
    file: BinaryIO, make_decompressor: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]
) -> Iterator[bytes]:
    """Unpack one stream after the other, as pbzip2 and `cat` leave them in one file."""
    stream = None
    packed = b""
    while True:
        # A stream that has more to give is asked with nothing new, so that a bomb stays small.
        if not packed and (stream is None or stream.needs_input):
            packed = file.read(BLOCK_BYTES)
            if not packed:
                break
        if stream is None:
            # Zeros fill up the last block of a tape or of an .xz file.
            packed = packed.lstrip(b"\0")
            if not packed:
                continue
            stream = make_decompressor()

        try:
            block = stream.decompress(packed, BLOCK_BYTES)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise EOFError(str(error)) from error
        packed = b""
        if block:
            yield block
        if stream.eof:
            packed = stream.unused_data
            stream = None
    if stream is not None:
        raise EOFError("the last stream is cut short")
