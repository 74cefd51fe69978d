"""A file of rows is parsed once, and again as soon as it is another."""

import os

import pytest
from support.synthetic import a_row, write_rows

from lipbench.storage.files import StorageError
from lipbench.storage.row_cache import RowCache
from lipbench.storage.rows import RowsDamaged, read_rows


@pytest.fixture(name="path")
def _path(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [a_row(value=0.25)])
    return path


def value(cache, path):
    (row,) = cache.rows(path)
    return row.value


def test_a_file_that_stays_the_same_is_parsed_once(path):
    cache = RowCache()
    assert cache.rows(path) is cache.rows(path)
    assert cache.rows(path) == read_rows(path)


def test_a_file_of_the_same_size_and_time_that_took_its_place_is_read(path):
    cache, before = RowCache(), path.stat()
    assert value(cache, path) == 0.25
    write_rows(path, [a_row(value=0.75)])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert value(cache, path) == 0.75


def test_a_file_that_was_written_over_is_read(path):
    cache = RowCache()
    assert value(cache, path) == 0.25
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.5"))
    assert value(cache, path) == 0.5


def test_what_was_read_once_is_no_excuse_for_a_file_that_is_damaged_or_gone(path):
    cache = RowCache()
    cache.rows(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RowsDamaged, match=r"rows\.csv"):
        cache.rows(path)
    path.unlink()
    with pytest.raises(StorageError, match="cannot read"):
        cache.rows(path)
