import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic import a_row, write_rows

from lipbench.storage.files import StorageError
from lipbench.storage.rows import COLUMNS, RowsDamaged, read_rows

HEADER = (
    "schema,benchmark,dataset,model,method,params,seed,checkpoint,split,n,metric,norm,epsilon,"
    "domain,estimator,side,value,status,flags,seconds,device,train_key,eval_key,env_id"
)


@pytest.fixture(name="path")
def _path(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [a_row(value=0.5), a_row(metric="train_accuracy", value=None)])
    return path


def test_the_file_has_the_published_columns_in_their_order(path):
    assert path.read_text().splitlines()[0] == HEADER
    assert ",".join(COLUMNS) == HEADER


def test_empty_means_not_measured_and_nan_means_nan(tmp_path):
    path = tmp_path / "rows.csv"
    write_rows(path, [a_row(value=None), a_row(value=math.nan), a_row(value=math.inf)])
    assert [line.split(",")[16] for line in path.read_text().splitlines()[1:]] == ["", "nan", "inf"]
    nothing, nan, infinite = (row.value for row in read_rows(path))
    assert nothing is None
    assert math.isnan(nan)
    assert infinite == math.inf


def test_control_characters_of_a_message_do_no_damage(tmp_path):
    write_rows(tmp_path / "rows.csv", [a_row(flags=("one\r\ntwo\rthree\0",))])
    assert read_rows(tmp_path / "rows.csv")[0].flags == ("one\ntwo\nthree",)


@settings(max_examples=50, deadline=None)
@given(
    value=st.floats(allow_nan=False),
    epsilon=st.floats(min_value=0, allow_nan=False),
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")),
)
def test_any_number_and_any_text_is_read_back_exactly(tmp_path_factory, value, epsilon, text):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    rows = [a_row(value=value, epsilon=epsilon, estimator=text, flags=("one", "two, three"))]
    write_rows(path, rows)
    (row,) = read_rows(path)
    assert row == rows[0]
    assert math.copysign(1, row.value) == math.copysign(1, value)


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    write_rows(tmp_path / "rows.csv", [a_row(value=np.float64(1 / 3))])
    assert read_rows(tmp_path / "rows.csv")[0].value == 1 / 3


@pytest.mark.parametrize("cut", [1, 5, 40, 200])
def test_a_file_cut_anywhere_within_a_line_is_damaged(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(RowsDamaged, match=r"rows\.csv"):
        read_rows(path)


def test_a_byte_order_mark_and_foreign_line_ends_do_no_harm(path):
    rows = read_rows(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"<html>not found</html>\n",
        lambda data: data.replace(b"mnist", b"mn\x00st"),
        lambda data: data + data,  # a second header in the middle
        lambda data: data.replace(b"0.5", b"half"),
        lambda data: data.replace(b"done", b"dnoe"),
        lambda data: data.replace(b"\n1,", b"\n2,"),  # a later schema
        lambda data: data.replace(b"mnist", b"\xff\xff"),
        lambda data: data.replace(b"env_id", b"env_id,mood", 1),
    ],
)
def test_a_foreign_file_is_damaged_and_named(path, spoil):
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(RowsDamaged, match=r"rows\.csv"):
        read_rows(path)


def test_an_absent_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        read_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize("field", [{"side": "above"}, {"status": "ok"}, {"flags": ("a;b",)}])
def test_a_row_refuses_words_that_no_reader_knows(field):
    with pytest.raises(ValueError, match=next(iter(field)).rstrip("s")):
        a_row(**field)
