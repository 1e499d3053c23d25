"""A stranger's table becomes records and gold, or a sentence that says what to fix."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents import Profiler
from cp_agents.bench.csv_dates import DateColumn, OrderSurvey, find_zone, looks_like_date
from cp_agents.bench.csv_load import Report
from cp_agents.bench.csv_map import ColumnMap, load_map, make_map
from cp_agents.bench.csv_read import open_table, read_rows
from cp_agents.bench.csv_records import prepare_csv
from cp_agents.bench.csv_values import Missing, is_personal_name, split_cell
from cp_agents.bench.dataset import open_dataset, read_gold
from cp_agents.cli.bench_prepare import app
from cp_agents.errors import InputError
from cp_agents.files import BadLine, read_records
from cp_agents.schema import UserRecord
from cp_agents.taxonomy import load_taxonomy
from tests.conftest import ROOT
from tests.support import PETS

EVENTS = "user_id,time,text,age\nu1,2025-03-02,second,30\nu2,2025-01-01,only,\nu1,2025-03-01,first,29\n"
EVENT_OPTIONS = ("--user", "user_id", "--text", "posted=text", "--time", "time")


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def convert(
    source: Path, raw: dict[str, Any], out: Path, **reading: Any
) -> tuple[Report, list[dict[str, Any]]]:
    """Prepare with a map; the report, and the records as the record reader gives them."""
    column_map = make_map(raw, "the map")
    reading.setdefault("named", column_map.named)
    report = prepare_csv(open_table(source, **reading), column_map, load_taxonomy(), out)
    records = list(read_records(out / "users.jsonl"))
    assert not [r for r in records if isinstance(r, BadLine)]
    return report, [r for r in records if not isinstance(r, BadLine)]


def run(*arguments: object, stdin: bytes | None = None) -> tuple[int, str]:
    """The verb's exit code and all that it said; an error's sentence last, as `cp-agents` prints it."""
    result = CliRunner().invoke(app, ["csv", *map(str, arguments)], input=stdin)
    if isinstance(result.exception, InputError):
        return result.exception.exit_code, f"{result.output}error: {result.exception}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


# --- reading ----------------------------------------------------------------------------------------------

_CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_ROWS = st.lists(st.tuples(st.text("abc", min_size=1, max_size=2), _CELL, _CELL), min_size=1, max_size=8)


@given(
    rows=_ROWS,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    terminator=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_writer_wrote_comes_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], encoding: str, delimiter: str, terminator: str
) -> None:
    text = io.StringIO()
    # A writer of "\n" lines leaves a lone "\r" without quotes, and then it is a line break.
    quoting = csv.QUOTE_MINIMAL if terminator == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=terminator, quoting=quoting)
    writer.writerows([("user", "text", "more"), *rows])
    path = write(tmp_path / "t.csv", text.getvalue(), encoding)
    table = open_table(path, encoding=encoding, delimiter=delimiter, header=True)
    assert table.columns == ("user", "text", "more")
    assert [row.cells for row in read_rows(table)] == [list(row) for row in rows]


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["u1", "u2", "u3"]), st.integers(0, 4), st.text('ab 漢,"\n', max_size=6)),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_reaches_its_user_in_order_of_time(
    tmp_path: Path, events: list[tuple[str, int, str]]
) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    text = io.StringIO()
    csv.writer(text).writerows(
        [("user", "day", "text"), *((u, f"2025-03-0{d + 1}", f"x{t}") for u, d, t in events)]
    )
    raw = {"user": "user", "time": "day", "sources": {"text": "text"}}
    _, records = convert(write(folder / "t.csv", text.getvalue()), raw, folder / "out")
    expected: dict[str, list[tuple[int, str]]] = {}
    for user, day, said in events:
        expected.setdefault(user, []).append((day, f"x{said}".strip()))
    assert [r["user_id"] for r in records] == list(expected)  # as they first stand in the file
    for record in records:
        found = [(int(i["time"][-1]) - 1, i["text"]) for i in record["text"]]
        assert found == sorted(expected[record["user_id"]], key=lambda e: e[0])


CHINESE = "用户,内容\n甲,今天在家带宝宝，晚上给孩子做饭\n乙,公司的会议开到很晚，我们都累了\n"
ACCENTED = "user,text\nu1,Le café était fermé à midi\nu2,Größe für Mädchen\n"


@pytest.mark.parametrize(
    ("text", "written", "found"),
    [
        (CHINESE, "utf-8", "utf-8"), (CHINESE, "utf-8-sig", "utf-8-sig"), (CHINESE, "utf-16", "utf-16"),
        (CHINESE, "utf-16-le", "utf-16-le"), (CHINESE, "utf-16-be", "utf-16-be"), (CHINESE, "gb18030", "gb18030"),
        (CHINESE, "gbk", "gb18030"), (ACCENTED, "cp1252", "cp1252"), (ACCENTED, "latin-1", "cp1252"),
        ("user;text\nu1;Grüße, Welt\nu2;Viele Grüße\n", "cp1252", "cp1252"),
        ("user,text\nu1,plain\n" * 9 + "u2,“curly” — €5\n", "cp1252", "cp1252"),
    ],
)  # fmt: skip
def test_encodings_are_found(tmp_path: Path, text: str, written: str, found: str) -> None:
    table = open_table(write(tmp_path / "t.csv", text, written))
    assert table.encoding == found
    expected = list(csv.reader(io.StringIO(text), delimiter=table.delimiter))
    assert [list(table.columns), *(row.cells for row in read_rows(table))] == expected


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("用戶,內容\n甲,今天天氣很好我們一起去公園玩\n" * 5, "big5"),
        ("user,text\nu1,오늘은 날씨가 좋아서 공원에 갔습니다 그리고 친구를 만났어요\n" * 20, "euc-kr"),
        ("user,text\nu1,Сегодня хорошая погода и мы гуляли\n" * 5, "cp1251"),
    ],
)
def test_an_encoding_that_cannot_be_told_is_asked_for(tmp_path: Path, text: str, encoding: str) -> None:
    path = write(tmp_path / "t.csv", text, encoding)
    with pytest.raises(InputError, match=r"line \d+.*name the encoding with --encoding"):
        open_table(path)
    table = open_table(path, encoding=encoding)
    assert next(read_rows(table)).cells == text.splitlines()[1].split(",")


def test_a_wrong_byte_names_its_line_and_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    good = "".join(f"u{i},今天在家\n" for i in range(200))
    path.write_bytes(f"user,text\n{good}".encode() + b"u9,caf\xe9 bar\nu10,ok\n")
    with pytest.raises(InputError, match=r"line 202, after 'u9,caf': the byte 0xE9 is not utf-8; mend"):
        open_table(path)
    raw = {"user": "user", "sources": {"t": "text"}, "file": {"replace_bad_bytes": True}}
    report, records = convert(path, raw, tmp_path / "out", lenient=True)
    assert report.doubts["wrong bytes replaced"] == 1
    assert records[9]["t"] == ["今天在家", "caf� bar"]


def test_a_chinese_character_that_is_cut_in_two_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(("用户,内容\n" + "甲,今天在家带宝宝\n" * 50).encode("gbk") + b"u9,\xbd\n")
    with pytest.raises(InputError, match=r"line 52, after 'u9,': the byte 0xBD is not gb18030"):
        open_table(path)
    assert [r.cells for r in read_rows(open_table(path, lenient=True))][-1] == ["u9", "�"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_and_quoting_are_found(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["user", "text", "price"],
        ["u1", f'a{delimiter} "b"\nc', "1,5"],
        ["u2", "plain, with comma", "2,25"],
    ]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    table = open_table(write(tmp_path / "t.csv", text.getvalue()))
    assert table.delimiter == delimiter
    assert [list(table.columns), *(row.cells for row in read_rows(table))] == rows


def test_what_programs_put_around_a_table(tmp_path: Path) -> None:
    excel = open_table(write(tmp_path / "excel.csv", "sep=;\nuser;text\nu1;a,b\n"))
    assert (excel.columns, next(read_rows(excel))) == (("user", "text"), (3, ["u1", "a,b"]))
    from_r = open_table(write(tmp_path / "r.csv", '"user","text"\n"1","u1","hello"\n"2","u2","you"\n'))
    assert from_r.columns == ("row", "user", "text")
    spaced = open_table(write(tmp_path / "spaced.csv", 'user, text\nu1, "a, b"\nu2, "c"\n'))
    assert [row.cells for row in read_rows(spaced)] == [["u1", "a, b"], ["u2", "c"]]
    twice = open_table(write(tmp_path / "twice.csv", "user,text,,text\nu1,a,b,c\n"))
    assert twice.columns == ("user", "text", "column 3", "text (2)")
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(EVENTS.encode()))
    assert len(list(read_rows(open_table(packed)))) == 3


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("user,age,text\nu1,30,hello\nu2,31,you\n", True),
        ("u1,30,hello\nu2,31,you\n", False),
        ("u1,2025-01-01,hello\nu1,2025-01-02,you\n", False),
        ("u1,hello\nu2,you\nu1,again\n", False),
        ("user,text\nu1,hello\nuser,text\nu2,you\n", True),
        ("id,2019,2020\na,5,6\nb,7,8\n", True),
    ],
)
def test_a_header_is_told_from_data(tmp_path: Path, text: str, header: bool) -> None:
    # The years of the last one look like data: a user who names a column says that they are the header.
    named = ["id"] if text.startswith("id,2019") else []
    table = open_table(write(tmp_path / "t.csv", text), named=named)
    assert table.header is header
    assert len(list(read_rows(table))) == text.count("\n") - header


BAD_FILES: list[tuple[bytes, tuple[str, ...], str]] = [
    (b"", (), "is empty: expected a CSV file"),
    (b"\n \n\n", (), "is empty: expected"),
    (b"PK\x03\x04rest", (), "zip archive or an Excel workbook: save the sheet as CSV"),
    (b'{"user_id": "u1"}\n', (), "is JSON, not CSV"),
    (b"<html><body>", (), "web page or XML"),
    (b"\x1f\x8b\x08\x00broken", (), "gzip file is damaged or cut off"),
    (b"user,text\nu1,a\n", ("--user", "usr", "--text", "text"), "has no column 'usr' (did you mean 'user'?)"),
    (b"user,text\nu1,a\n", ("--user", "user", "--text", "words"), "its columns are: user, text"),
    (b"user,text\nu1,a\n", ("--text", "text"), "no --user: name the column"),
    (b"user,text\nu1,a\n", ("--user", "user"), "no --text: name a column with texts; the columns are: user, text"),
    (b'user,text\nu1,"a\nu2,b\n', ("--user", "user", "--text", "text"), "line 2: a quotation mark opens a cell"),
    (b'user,text\nu1,x\nu1,"a "b" c"\n', ("--user", "user", "--text", "text"), "line 3: text follows the closing"),
    (b"user,text\nu1,a\n", ("--user", "user", "--text", "text", "--encoding", "klingon"), "no encoding 'klingon'"),
    (b"user,text\nu1,a\nu2,b\n", ("--user", "user", "--text", "text", "--delimiter", "::"), "should be one character"),
    (b"user,text\nu1,a\n", ("--user", "user", "--text", "text", "--quotes", "odd"), "'double', 'backslash' or 'none'"),
    (b"user,text\nu1,a\n", ("--user", "user", "--text", "text", "--gold", "sign=text"), "has no attribute 'sign'"),
    (b"user,text,sex\nu1,a,F\n", ("--user", "user", "--text", "text", "--gold", "gender=sex", "--self-reported", "sex"),
     "is the gold of 'gender' and would be shown to the model"),
    (b"user,text\nu1,a\n", ("--user", "user", "--text", "user"), "is the user's id and cannot be shown"),
    (b"user,text\nu1,a\n", ("--user", "user", "--text", "user_id=text"), "a source cannot be called 'user_id'"),
    (b"user,text\n", ("--user", "user", "--text", "text"), "no user could be read (it has no rows)"),
    (b"user,text\n-,a\nNULL,b\n", ("--user", "user", "--text", "text"), "rows without a user id: 2, first on line 2"),
    (b"user,day,text\nu1,1/2/2025,a\nu1,3/4/2025,b\n", ("--user", "user", "--text", "text", "--time", "day"),
     "can be read in two ways ('1/2/2025', and no cell has a day above 12); say --date-format day-first"),
    (b"user,day,text\nu1,13/2/2025,a\nu1,2/13/2025,b\n", ("--user", "user", "--text", "text", "--time", "day"),
     "in two orders: '13/2/2025' on line 2 has the day first, '2/13/2025' on line 3 the month"),
    (b"user,day,text\nu1,25/3/1,a\n", ("--user", "user", "--text", "text", "--time", "day"), "years of two digits"),
    (b"user,day,text\nu1,soon,a\nu1,later,b\n", ("--user", "user", "--text", "text", "--time", "day"),
     "2 of 2 cells of column 'day' are no time (first on line 2)"),
    (b"user,day,text\nu1,2025-01-01,a\n",
     ("--user", "user", "--text", "text", "--time", "day", "--date-format", "dd.mm"), "format 'dd.mm' is none"),
    (b"user,day,text\nu1,1,a\n", ("--user", "user", "--text", "text", "--time", "day", "--timezone", "Mars/Base"),
     "no time zone 'Mars/Base'"),
    (b"user,text\nu1,a,b,c\nu2,d,e,f\nu3,x\n", ("--user", "user", "--text", "text", "--delimiter", ",", "--header"),
     "does not name the columns: take away what stands above the header"),
    (b"Report of May\n\nuser,text,x\nu1,a,1\nu2,b,2\n", ("--user", "user", "--text", "text"), "does not name"),
    (b"user,text,x\nu1,a,b\nu2,c\nu3,e\n", ("--user", "user", "--text", "text"), "2 of 3 rows do not have 3 cells"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "options", "sentence"), BAD_FILES, ids=[s[:40] for _, _, s in BAD_FILES])
def test_bad_files_get_a_sentence_and_leave_nothing(
    tmp_path: Path, raw: bytes, options: tuple[str, ...], sentence: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    code, said = run(path, "--out", tmp_path / "out", *(options or ("--user", "user", "--text", "text")))
    assert (code, sentence in said.rpartition("error: ")[2]) == (2, True), said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv"]


def test_no_file_a_folder_and_a_place_that_is_taken(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", EVENTS)
    assert "no file at" in run(tmp_path / "none.csv", "--out", tmp_path / "out")[1]
    assert "is a folder" in run(tmp_path, "--out", tmp_path / "out")[1]
    (tmp_path / "full").mkdir()
    write(tmp_path / "full" / "x", "x")
    assert "it is there already" in run(source, "--out", tmp_path / "full", *EVENT_OPTIONS)[1]
    assert "does not exist" in run(source, "--out", tmp_path / "no" / "out", *EVENT_OPTIONS)[1]
    assert (
        "leave out --user" in run(source, "--out", tmp_path / "o", "--map", "m.yaml", "--user", "user_id")[1]
    )


def test_rows_that_do_not_fit_are_left_out_and_counted(tmp_path: Path) -> None:
    text = (
        "user,day,text,minutes\n"
        "u1,2025-01-01,good,5\n"
        "u1,2025-01-02,too,many,cells\n"
        "u1,2025-01-03\n"
        ",2025-01-01,nobody,1\n"
        "\n"
        "user,day,text,minutes\n"
        f"{'x' * 600},2025-01-01,long id,1\n"
        "u2,someday,no such day,much\n"
        "u3,2025-01-01,无,\n"
        "u2,2025-01-01,trailing,2,\n"
    )
    raw = {"user": "user", "time": "day", "sources": {"t": {"column": "text", "weight": "minutes"}}}
    report, records = convert(write(tmp_path / "t.csv", text), raw, tmp_path / "out")
    assert report.left_out == {
        "rows with too many cells": 1,
        "rows with too few cells": 1,
        "rows without a user id": 1,
        "lines that repeat the header": 1,
        "rows whose user id is too long or holds control characters": 1,
        "users without a text or a self-reported field": 1,
    }
    assert report.doubts["times that cannot be read"] == 1
    assert report.doubts["cells of 'minutes' that are no number of 0 or more"] == 1
    assert report.first["rows with too few cells"] == 4
    assert records == [
        {"user_id": "u1", "t": [{"text": "good", "time": "2025-01-01", "weight": 5.0}]},
        {"user_id": "u2", "t": ["no such day", {"text": "trailing", "time": "2025-01-01", "weight": 2.0}]},
    ]
    card = open_dataset(tmp_path / "out").card
    assert (card.users, card.left_out) == (2, dict(report.left_out))
    raw["file"] = {"pad_short_rows": True}
    report, _ = convert(write(tmp_path / "t.csv", text), raw, tmp_path / "padded")
    assert report.doubts["rows with too few cells, filled up"] == 1


def test_nul_bytes_long_cells_and_rounded_ids(tmp_path: Path) -> None:
    long = "word " * 200_000
    text = f"user,text\nu\x001,a\x00b\n1.23457E+15,{long}\n"
    report, records = convert(
        write(tmp_path / "t.csv", text), {"user": "user", "sources": {"t": "text"}}, tmp_path / "out"
    )
    assert [r["t"] for r in records] == [["ab"], [long.strip()]]
    assert report.doubts["NUL characters taken out"] == 2
    assert any("spreadsheet has rounded" in kind for kind in report.doubts)


@pytest.mark.parametrize("quotes", ["backslash", "none"])
def test_other_quoting(tmp_path: Path, quotes: str) -> None:
    text = 'user,text\nu1,"say \\"hi\\", you"\n' if quotes == "backslash" else 'user,text\nu1,"hi" she said\n'
    raw = {"user": "user", "sources": {"t": "text"}}
    _, records = convert(write(tmp_path / "t.csv", text), raw, tmp_path / "out", quotes=quotes)
    assert records[0]["t"] == ['say "hi", you' if quotes == "backslash" else '"hi" she said']


# --- dates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("2025-03-01", "2025-03-01"), ("2025/3/1", "2025-03-01"), ("2025.3.1 8:05", "2025-03-01T08:05:00"),
        ("2025年3月1日", "2025-03-01"), ("2025年3月1日 下午3点20分", "2025-03-01T15:20:00"), ("2025年3月", "2025-03"),
        ("13.02.2025", "2025-02-13"), ("2/13/2025 3:05 PM", "2025-02-13T15:05:00"), ("2025", "2025"),
        ("2/13/2025 12:05 am", "2025-02-13T00:05:00"), ("20250301", "2025-03-01"),
        ("20250301123005", "2025-03-01T12:30:05"), ("1746140400", "2025-05-01T23:00:00Z"),
        ("1746140400000", "2025-05-01T23:00:00Z"), ("2025-03-01T12:00:00+08:00", "2025-03-01T12:00:00+08:00"),
        ("2025-03-01 12:00:00 UTC", "2025-03-01T12:00:00Z"), ("2025-03-01T12:00:00Z", "2025-03-01T12:00:00Z"),
        ("May 3, 2025", "2025-05-03"), ("3 May 2025", "2025-05-03"), ("03-May-25", "2025-05-03"),
        ("Fri May 02 13:00:00 +0000 2025", "2025-05-02T13:00:00Z"), ("1/1/2025", "2025-01-01"),
        ("1/2/2025", None), ("0000-00-00", None), ("2025-13-40", None), ("soon", None), ("12", None), ("", None),
    ],
)  # fmt: skip
def test_dates_are_read(cell: str, written: str | None) -> None:
    time = DateColumn().read(cell)
    assert (time.written if time else None) == written


@given(st.text(max_size=40) | st.from_regex(r"[0-9/.: -]{1,30}", fullmatch=True))
def test_no_cell_breaks_the_date_reader(cell: str) -> None:
    for order in ("day-first", "month-first"):
        time = DateColumn(order).read(cell)
        assert time is None or 1900 <= int(time.written[:4]) < 2100


@given(st.datetimes().filter(lambda d: 1900 <= d.year < 2100), st.sampled_from(["day-first", "month-first"]))
def test_the_whole_column_decides_the_order(moment: Any, order: str) -> None:
    pattern = "%d/%m/%Y" if order == "day-first" else "%m/%d/%Y"
    survey = OrderSurvey()
    for line, cell in enumerate(
        [moment.strftime(pattern), "25/12/2020" if order == "day-first" else "12/25/2020"]
    ):
        survey.add(line, cell)
    time = DateColumn(survey.decide("day")).read(moment.strftime(pattern))
    assert time is not None
    assert time.written == moment.date().isoformat()


def test_a_zone_moves_seconds_since_1970_and_not_what_was_written_with_one(tmp_path: Path) -> None:
    column = DateColumn(zone=find_zone("Asia/Shanghai"))
    late, same, local = map(column.read, ("1746140400", "2025-05-01T23:00:00Z", "2025-05-02 07:00"))
    assert late is not None
    assert same is not None
    assert local is not None
    assert late.written == "2025-05-02T07:00:00+08:00"
    assert late.at == same.at == local.at


def test_looks_like_date_is_careful() -> None:
    assert all(map(looks_like_date, ("2025-01-01", "1/2/2025", "2025年3月1日")))
    assert not any(map(looks_like_date, ("2025", "30", "12.5", "u1", "hello world")))


# --- cells ------------------------------------------------------------------------------------------------


def test_spellings_of_an_empty_cell() -> None:
    missing = Missing(["保密"])
    assert all(
        map(
            missing,
            ("", "NULL", "NaN", "None", r"\N", "-", "无", "N/A", "n/a", "#N/A", "<NA>", "保密", "ＮＵＬＬ"),
        )
    )
    assert not any(map(missing, ("0", "no", "nan bread", "无聊", "- a list")))


def test_lists_in_cells() -> None:
    assert split_cell("a | b||c", "|") == ["a", "b", "c"]
    assert split_cell('["a", "b, c"]', "json") == ["a", "b, c"]
    assert split_cell("['a', 3]", "json") == ["a", "3"]
    assert split_cell("[" * 100_000, "json") is None
    assert split_cell("no list", "json") is None


@pytest.mark.parametrize(
    "column",
    [
        "name",
        "First Name",
        "email",
        "E-mail",
        "phoneNumber",
        "mobile",
        "姓名",
        "手机号",
        "邮箱",
        "IP",
        "身份证号",
        "昵称",
    ],
)
def test_columns_that_name_people(column: str) -> None:
    assert is_personal_name(column)


# --- maps, gold and records ---------------------------------------------------------------------------------


def test_gold_by_the_taxonomys_own_matching_and_the_maps_values(tmp_path: Path) -> None:
    text = "id,t,性别,岁数,job\n" + "".join(
        f"u{i},hi there,{g},{a},{j}\n"
        for i, (g, a, j) in enumerate(
            [
                ("女", 25, "码农"),
                ("M", "25岁", "7"),
                ("x", "", "astronaut"),
                ("未知", 999, "-"),
                ("x", "N/A", "7"),
            ]
        )
    )
    raw = {
        "user": "id",
        "sources": {"t": "t"},
        "gold": {
            "gender": "性别",
            "age": "岁数",
            "occupation": {"column": "job", "values": {7: "Retiree", "-": "Student"}},
        },
    }
    report, _ = convert(write(tmp_path / "t.csv", text), raw, tmp_path / "out")
    gold, _ = read_gold(open_dataset(tmp_path / "out"))
    assert gold == {
        "u0": {"gender": "Female", "age": "24-30", "occupation": "Software"},
        "u1": {"gender": "Male", "age": "24-30", "occupation": "Retiree"},
        "u2": {"gender": "NA", "occupation": "NA"},
        "u3": {"gender": "NA", "age": "NA", "occupation": "Student"},
        "u4": {"gender": "NA", "occupation": "Retiree"},
    }
    assert report.truth["gender"].unmapped.most_common() == [("x", 2)]
    assert report.truth["age"].unmapped == {"999": 1}
    assert report.truth["occupation"].unmapped == {"astronaut": 1}


def test_the_latest_value_of_a_user_stays(tmp_path: Path) -> None:
    raw = {"user": "user_id", "time": "time", "sources": {"t": "text"}, "self_reported": {"age": "age"}}
    report, records = convert(write(tmp_path / "t.csv", EVENTS), raw, tmp_path / "out")
    assert [r.get("self_reported") for r in records] == [{"age": "30"}, None]
    assert report.doubts == {"users with several values of 'age', the latest taken": 1}


def test_one_row_a_user_with_lists_and_several_columns(tmp_path: Path) -> None:
    text = "watched,searched,region\nCrime film | Cat video,\"['pram', 'nursery']\",north\nnone,[],\n"
    raw = {
        "user": "#row",
        "sources": {
            "watched": {"column": "watched", "separator": "|"},
            "searched": {"column": "searched", "separator": "json"},
        },
        "self_reported": {"region": "#3"},
    }
    report, records = convert(write(tmp_path / "t.csv", text), raw, tmp_path / "out")
    assert records == [
        {
            "user_id": "row-1",
            "watched": ["Crime film", "Cat video"],
            "searched": ["pram", "nursery"],
            "self_reported": {"region": "north"},
        }
    ]
    assert report.left_out == {"users without a text or a self-reported field": 1}


_NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)


@given(
    user=_NAME,
    sources=st.dictionaries(_NAME, st.lists(_NAME, min_size=1, max_size=3), min_size=1, max_size=3),
    reported=st.dictionaries(_NAME, _NAME, max_size=3),
    values=st.dictionaries(_NAME, _NAME, max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_a_map_comes_back_from_its_yaml(
    tmp_path: Path, user: str, sources: dict[str, list[str]], reported: dict[str, str], values: dict[str, str]
) -> None:
    sources = {k: v for k, v in sources.items() if k not in ("user_id", "self_reported")} or {"t": ["t"]}
    column_map = ColumnMap.model_validate(
        {
            "user": user,
            "sources": {k: {"columns": v, "separator": "|"} for k, v in sources.items()},
            "self_reported": reported,
            "gold": {"age": {"column": "x", "values": values}},
            "file": {"delimiter": "tab", "missing": ["?"]},
        }
    )
    path = tmp_path / "map.yaml"
    path.write_text(column_map.to_yaml(), encoding="utf-8")
    assert load_map(path) == column_map


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("user: [", "not YAML"),
        ("- user", "expected a mapping"),
        ("sources: {t: t}", "user: is missing"),
        ("user: u\nsources: {}", "no column with text is named"),
        (
            "user: u\nsources: {t: {colum: t}}",
            "sources.t.colum: not a part of a column map (expected columns, separator",
        ),
        ("user: u\nsource: {t: t}", "source: not a part of a column map (expected user, time"),
        ("user: u\nsources: {t: t}\ngold: {gender: {column: g, values: {yes: F}}}", "put it in quotes"),
    ],
)
def test_maps_that_are_none(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        load_map(write(tmp_path / "map.yaml", text))
    assert sentence in str(error.value)
    assert str(tmp_path / "map.yaml") in str(error.value)


def test_a_taxonomy_of_ones_own(tmp_path: Path) -> None:
    taxonomy = tmp_path / "pets.yaml"
    taxonomy.write_text(json.dumps(PETS.model_dump(mode="json", exclude_defaults=True)))
    source = write(tmp_path / "t.csv", "user,text,animal\nu1,purr,cat\nu2,bark,wolf\n")
    options = ("--user", "user", "--text", "text", "--gold", "pet=animal", "--taxonomy", taxonomy)
    code, said = run(source, "--out", tmp_path / "out", *options)
    assert code == 0, said
    assert "gold of pet: Cat 1, NA 1" in said
    assert "no tag has these names, so they are NA: 'wolf' 1" in said
    assert f"--taxonomy {taxonomy}" in said


# --- the proposal -------------------------------------------------------------------------------------------

STRANGER = (
    "uid,创建时间,内容,地区,姓名,email,contact,score,age\n"
    "u1,2025/3/1 8:00,今天在家带宝宝，晚上给孩子做饭,北方,王芳,wang@example.com,13812345678,0.5,30\n"
    "u2,2025/3/2 9:00,公司的会议开到很晚,南方,李明,li@example.com,13912345678,0.7,无\n"
    "u1,2025/3/3 8:30,婴儿车怎么选,北方,王芳,wang@example.com,13812345678,0.1,30\n"
)


def test_without_a_map_a_proposal_that_names_no_person(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", STRANGER, "gb18030")
    saved = tmp_path / "map.yaml"
    code, said = run(source, "--out", tmp_path / "out", "--write-map", saved)
    assert code == 2
    assert "'age': what users say of themselves" in said
    assert f"correct {saved} and run: cp-agents bench prepare csv {source} --map {saved} --out" in said
    for person in ("王芳", "wang@example.com", "13812345678"):
        assert person not in said
    column_map = load_map(saved)
    assert (column_map.user, column_map.time, list(column_map.sources)) == ("uid", "创建时间", ["内容"])
    assert column_map.self_reported == {"age": "age", "地区": "地区"}
    assert not (tmp_path / "out").exists()
    code, said = run(source, "--map", saved, "--out", tmp_path / "out")
    assert code == 0, said
    written = (tmp_path / "out" / "users.jsonl").read_text(encoding="utf-8")
    assert "婴儿车怎么选" in written
    assert "王芳" not in written


def test_a_clear_table_needs_no_map(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", "user_id,created_at,comment\nu1,2025-01-01,hello\nu2,2025-01-02,you\n")
    code, said = run(source, "--out", tmp_path / "out")
    assert code == 0, said
    assert "2 rows gave 2 users with 2 items" in said
    code, said = run(source)
    assert (code, "if the map above is right, run: cp-agents bench prepare csv" in said) == (2, True)
    code, said = run(source, "--write-map", tmp_path / "map.yaml")
    assert (code, "next: check it and run" in said) == (0, True)


def test_a_table_without_a_users_column_asks_for_it(tmp_path: Path) -> None:
    source = write(tmp_path / "t.csv", "email,comment\na@example.com,hello\nb@example.com,you\n")
    code, said = run(source, "--out", tmp_path / "out")
    assert code == 2
    assert "no column looks like a user's id: name it, or say '#row'" in said
    assert "user: FILL_IN" in said


@given(rows=st.lists(st.lists(_CELL, min_size=3, max_size=3), min_size=2, max_size=6))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_gives_a_proposal_or_a_sentence(tmp_path: Path, rows: list[list[str]]) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    code, said = run(write(folder / "t.csv", text.getvalue()), "--out", folder / "out")
    assert code in (0, 2)
    assert code == 0 or "error: " in said
    assert (folder / "out").exists() is (code == 0)


# --- from end to end ----------------------------------------------------------------------------------------


def test_standard_input(tmp_path: Path) -> None:
    code, said = run("-", "--out", tmp_path / "out", *EVENT_OPTIONS, stdin=gzip.compress(EVENTS.encode()))
    assert code == 0, said
    assert "standard input: read as utf-8" in said
    assert sum(1 for _ in read_records(tmp_path / "out" / "users.jsonl")) == 2


def test_the_records_profile(tmp_path: Path) -> None:
    rows = "uid,内容\n" + "".join(
        f"甲,{t}\n" for t in ("给宝宝换尿布", "产假快结束了", "老公出差，我一个人带娃")
    )
    _, records = convert(
        write(tmp_path / "t.csv", rows, "gb18030"),
        {"user": "uid", "sources": {"posted": "内容"}},
        tmp_path / "out",
    )
    assert UserRecord.from_dict(records[0]).sources["posted"][0].text == "给宝宝换尿布"
    profile = Profiler(backend="lexicon", store=tmp_path / "t.db", samples=10).profile(records[0])
    assert profile["life_stage"].tag.startswith("Parenting")


_MEASURE = """
import resource, sys
from pathlib import Path
from cp_agents.bench.csv_map import make_map
from cp_agents.bench.csv_read import open_table
from cp_agents.bench.csv_records import prepare_csv
from cp_agents.taxonomy import load_taxonomy
m = make_map({"user": "u", "time": "t", "sources": {"x": "x"}}, "map")
report = prepare_csv(open_table(Path(sys.argv[1])), m, load_taxonomy(), Path(sys.argv[2]))
print(report.events, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def measure(name: str, rows: int) -> int:
        rng = random.Random(5)
        with (tmp_path / name).open("w") as file:
            file.write("u,t,x\n")
            for i in range(rows):
                file.write(
                    f"user{rng.randrange(5000)},2025-03-{1 + i % 28:02d},{'some words of a user ' * 30}{i}\n"
                )
        command = [sys.executable, "-c", _MEASURE, str(tmp_path / name), str(tmp_path / f"{name}.out")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        events, megabytes = map(int, done.stdout.split())
        assert events == rows
        return megabytes

    small, large = measure("small.csv", 100), measure("large.csv", 40_000)
    assert (tmp_path / "large.csv").stat().st_size > 24 * 2**20
    # SQLite's cache is 64 MB; the texts alone, held as Python objects, would be more than the file.
    assert large - small < 80


def test_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "csv.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    files = re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in files] == ["visits.csv", "map.yaml"]
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    outputs = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    commands = [
        shlex.split(line)
        for block in re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("cp-agents bench prepare csv")
    ]
    said = [run(*command[4:])[1] for command in commands]
    assert said[1] == outputs[1]
    for line in outputs[0].splitlines():
        assert " ".join(line.split()) in " ".join(said[0].split()), line
    users = re.findall(r"^```json\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert [json.loads(u) for u in users] == [
        json.loads((tmp_path / "visits" / "users.jsonl").read_text().splitlines()[0])
    ]
