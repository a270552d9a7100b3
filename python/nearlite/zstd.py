"""One zstd frame in, bytes out, with the size known beforehand; and the way back.

Python 3.14 carries zstd in its standard library; before that it is the package ``zstandard``.
"""

from __future__ import annotations

import sys

Buffer = bytes | bytearray | memoryview

# A frame may demand a window as large as its content; chunks are at most 8 MiB and a table.
_WINDOW_LOG = 24


class ZstdError(ValueError):
    """Not one whole zstd frame of exactly the announced size."""


if sys.version_info >= (3, 14):
    from compression import zstd as _zstd

    def compress(data: Buffer, level: int) -> bytes:
        """One frame that says how large its content is."""
        return _zstd.compress(data, level)

    def decompress(data: Buffer, size: int) -> bytes:
        """The `size` bytes of one frame, at no time more than that in memory.

        Raises:
          ZstdError: damaged, followed by other bytes, or of another size.
        """
        limit = {_zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        decoder = _zstd.ZstdDecompressor(options=limit)
        try:
            # One byte more than wanted: a frame that holds more shows itself.
            out = decoder.decompress(data, size + 1)
        except _zstd.ZstdError as error:
            raise ZstdError(str(error)) from None
        if len(out) != size or not decoder.eof or decoder.unused_data:
            raise ZstdError(f"not one whole frame of {size} bytes")
        return out

    class Stream:
        """One frame that is made piece by piece, each of which can be read when it has come."""

        def __init__(self, level: int) -> None:
            self._made = _zstd.ZstdCompressor(level)

        def piece(self, data: Buffer) -> bytes:
            """The next piece."""
            return self._made.compress(data, _zstd.ZstdCompressor.FLUSH_BLOCK)

        def end(self) -> bytes:
            """What is left."""
            return self._made.flush()

else:
    import zstandard as _zstandard

    def compress(data: Buffer, level: int) -> bytes:
        """One frame that says how large its content is."""
        return _zstandard.ZstdCompressor(level=level).compress(data)

    def decompress(data: Buffer, size: int) -> bytes:
        """The `size` bytes of one frame, at no time more than that in memory.

        Raises:
          ZstdError: damaged, followed by other bytes, or of another size.
        """
        try:
            # The size inside the frame decides how much zstandard allocates: look at it first.
            if _zstandard.get_frame_parameters(data).content_size != size:
                raise ZstdError(f"not a frame of {size} bytes")
            decoder = _zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
            out = decoder.decompress(data, max_output_size=size, allow_extra_data=False)
        except _zstandard.ZstdError as error:
            raise ZstdError(str(error)) from None
        if len(out) != size:
            raise ZstdError(f"not one whole frame of {size} bytes")
        return out

    class Stream:
        """One frame that is made piece by piece, each of which can be read when it has come."""

        def __init__(self, level: int) -> None:
            self._made = _zstandard.ZstdCompressor(level=level).compressobj()

        def piece(self, data: Buffer) -> bytes:
            """The next piece."""
            made = self._made.compress(data)
            return made + self._made.flush(_zstandard.COMPRESSOBJ_FLUSH_BLOCK)

        def end(self) -> bytes:
            """What is left."""
            return self._made.flush()
