"""The two file formats of `torch.save`, a zip archive and the older stream, and tensors out of them.

Whatever a file says of its sizes is held against the bytes that are there, before memory is taken for it.
"""

import errno
import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tl_subvalues.baevski18.pickles import TRUNCATED, Storage, TensorAt, read_pickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

Read = Callable[[Storage], Tensor]


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Read]]:
    """What a file of `torch.save` says, tensors described only, and a function that reads a storage's numbers.

    Raises:
        UnsupportedModelError: if its pickle names what a checkpoint has no need of.
        ValueError: if it is damaged, or is no such file.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            try:
                with zipfile.ZipFile(file) as archive:
                    yield _zipped(archive, path.stat().st_size)
            except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
                raise ValueError(TRUNCATED) from error
            except OSError as error:
                if error.errno != errno.EINVAL:  # not a place before the file's beginning
                    raise
                raise ValueError(TRUNCATED) from error
        elif not path.stat().st_size:
            raise ValueError(TRUNCATED)
        else:
            yield _streamed(file)


def _zipped(archive: zipfile.ZipFile, size: int) -> tuple[Any, Read]:
    """The records of an archive, which `torch.save` stores as they are."""
    records = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in records if name.partition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or len(records) != len(archive.infolist()):
        raise ValueError(TRUNCATED)
    packed = [info for info in records.values() if info.compress_type != zipfile.ZIP_STORED]
    if packed or sum(info.file_size for info in records.values()) > size:
        raise ValueError("its records are compressed or overlap, as torch.save never writes them; not unpacked")
    folder = pickles[0].partition("/")[0]
    order = f"{folder}/byteorder"
    if order in records and archive.read(order) != b"little":
        raise ValueError("its numbers are not in little-endian order; save it again on another machine")

    def read(storage: Storage) -> Tensor:
        record = records.get(f"{folder}/data/{storage.key}")
        if record is None or record.file_size != storage.size:
            raise ValueError(TRUNCATED)
        with archive.open(record) as source:
            return _numbers(storage, source)

    return read_pickle(archive.read(pickles[0])), read


def _streamed(file: BinaryIO) -> tuple[Any, Read]:
    """Pickles one after another (a magic number, a version, the machine, the content, keys), then the storages."""
    storages: dict[str, Storage] = {}
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if read_pickle(mapped) != _MAGIC or read_pickle(mapped) != _PROTOCOL:
            raise ValueError(TRUNCATED)
        machine = read_pickle(mapped)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError("its numbers are not in little-endian order; save it again on another machine")
        content, keys = read_pickle(mapped, storages), read_pickle(mapped)
        starts: dict[str, int] = {}
        place = mapped.tell()
        for key in keys if isinstance(keys, list) else [None]:
            if not isinstance(key, str) or key not in storages or key in starts:
                raise ValueError(TRUNCATED)
            storage = storages[key]
            if int.from_bytes(mapped[place : place + 8], "little") != storage.numel:
                raise ValueError(TRUNCATED)
            starts[key] = place + 8
            place += 8 + storage.size
        if place > len(mapped):
            raise ValueError(TRUNCATED)

    def read(storage: Storage) -> Tensor:
        if storage.key not in starts:
            raise ValueError(TRUNCATED)
        file.seek(starts[storage.key])
        return _numbers(storage, file)

    return content, read


def _numbers(storage: Storage, source: Any) -> Tensor:
    """A storage's numbers in a row, from a stream that has as many."""
    numbers = torch.empty(storage.numel, dtype=storage.dtype)
    rest = numbers.view(torch.uint8).numpy().data
    while len(rest):
        count = source.readinto(rest)
        if not count:
            raise ValueError(TRUNCATED)
        rest = rest[count:]
    return numbers


def tensors(described: Mapping[str, TensorAt], read: Read) -> dict[str, Tensor]:
    """Tensors in memory, each storage read once and shared by those that are in it."""
    flat: dict[str, Tensor] = {}
    made = {}
    for name, place in described.items():
        if place.storage.key not in flat:
            flat[place.storage.key] = read(place.storage)
        made[name] = flat[place.storage.key].as_strided(place.size, place.stride, place.offset)
    return made


def numbers_of(described: Mapping[str, TensorAt]) -> tuple[int, int]:
    """How many numbers the tensors have, each counted by itself, and how many their storages hold."""
    held = {place.storage.key: place.storage.numel for place in described.values()}
    return sum(place.numel for place in described.values()), sum(held.values())
