"""Thrift's compact protocol, as far as it takes to read the footer of a Parquet file.

pyarrow reads footers as well, but what it shows of a column ends the whole process where a statistic is damaged.
Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

_LONGEST_VARINT = 10
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12


def read_struct(data: bytes) -> dict[int, Any]:
    """The fields of a struct by their ids; ValueError, IndexError or RecursionError where there is none."""
    return _Reader(data).struct()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            step, kind = header >> 4, header & 15
            number = number + step if step else self._whole()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind == _STRUCT:
            return self.struct()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            header = self._byte()
            length = header >> 4
            return [self._value(header & 15) for _ in range(self._varint() if length == 15 else length)]
        if kind == _MAP:
            length = self._varint()
            kinds = self._byte() if length else 0
            return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in range(length)]
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind in (_TRUE, _FALSE, _BYTE):  # of a list: a field says it in its header
            return self._byte()
        if _BYTE < kind < _DOUBLE:
            return self._whole()
        raise ValueError(f"there is no type {kind}")

    def _byte(self) -> int:
        byte = self._data[self._at]
        self._at += 1
        return byte

    def _bytes(self, length: int) -> bytes:
        self._at += length
        if self._at > len(self._data):
            raise IndexError(f"{length} bytes were expected")
        return self._data[self._at - length : self._at]

    def _varint(self) -> int:
        value = 0
        for place in range(_LONGEST_VARINT):
            byte = self._byte()
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value
        raise ValueError("a number has too many digits")

    def _whole(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
