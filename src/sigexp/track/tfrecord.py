"""TensorFlow's record files, which TensorBoard reads: length, data, and a CRC-32C of each.

TensorBoard's own writer takes half a second to import and 25 ms for the checksum of a picture of 100 kB; a run of ten
seconds would feel both.
"""

import struct
from functools import cache
from pathlib import Path

import numpy as np

POLYNOMIAL = 0x82F63B78  # of CRC-32C, Castagnoli, least significant bit first
STRIDE = 256  # bytes; strides of long data are worked through side by side
LONG = 16  # strides from which that is quicker


class RecordFile:
    """Appends records to a new file. Raises OSError where the disk does."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "xb")  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """One record, at once where others can read it."""
        length = struct.pack("<Q", len(data))
        self.file.write(length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data)))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def masked(data: bytes) -> int:
    """The checksum as record files hold it."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, B.4).

    The register is linear in what it held and what it is given: strides are worked through from zero side by side, and
    then one after the other taken into the register, which STRIDE zero bytes have moved on.
    """
    table, moved = tables()
    count = len(data) // STRIDE if len(data) >= LONG * STRIDE else 0
    registers = np.zeros(count, np.uint32)
    if count:
        lookup = np.array(table, np.uint32)
        strides = np.frombuffer(data, np.uint8, count * STRIDE).reshape(count, STRIDE)
        for byte in np.ascontiguousarray(strides.T):
            registers = lookup[(registers ^ byte) & 0xFF] ^ (registers >> 8)
    crc = 0xFFFFFFFF
    first, second, third, fourth = moved
    for register in registers.tolist():
        crc = first[crc & 0xFF] ^ second[crc >> 8 & 0xFF] ^ third[crc >> 16 & 0xFF] ^ fourth[crc >> 24] ^ register
    for value in data[count * STRIDE :]:
        crc = table[(crc ^ value) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def tables() -> tuple[list[int], list[list[int]]]:
    """What a byte makes of the register [256], and what STRIDE zero bytes make of each of its four bytes [4][256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    moved = np.arange(256, dtype=np.uint32)[None] << np.array([0, 8, 16, 24], np.uint32)[:, None]
    for _ in range(STRIDE):
        moved = table[moved & 0xFF] ^ (moved >> 8)
    return table.tolist(), moved.tolist()
