"""What the columns of an unknown table may be: a proposal for a person to check, never more.

A column is proposed as something a model sees only where its name or its content says that it is text or a plain
fact about users. Columns that name, locate or reach a person are left out, whatever else they look like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import yaml

from cp_agents.bench.csv_dates import looks_like_date
from cp_agents.bench.csv_read import Table, read_rows
from cp_agents.bench.csv_values import Missing, is_number, is_personal_name, is_personal_value, split_cell
from cp_agents.taxonomy import Taxonomy, fold

SAMPLE_ROWS = 20_000
_SAMPLE_CHARS = 1 << 25
_LONGEST_KEPT = 400
_SEPARATORS = ("|", ";", "；", "、", "\n")
_FILL_IN = "FILL_IN"

_USER = (
    re.compile(
        r"user ?id|userid|uid|user|用户(?:id|编号|标识|号|)|(?:会员|客户|作者|账号|帐号)(?:id|编号|号|)|caseid|case id"
        r"|pid|(?:author|member|customer|participant|respondent|visitor|reviewer|account|person|client|subject|player|patient"
        r"|student) ?id"
    ),
    re.compile(r"author|member|customer|participant|respondent|visitor|reviewer|account|person|subject|id|编号|序号"),
)  # fmt: skip
_TIME = re.compile(
    r"(?:.* )?(?:time|date|timestamp|datetime|ts|day)|.* at|.*(?:时间|日期|时刻)|created|posted|published|date .*"
    r"|time .*"
)
_NO_EVENT = re.compile(r"birth|dob|生日|出生|registered|signup|joined|注册")
_TEXT = re.compile(
    r"(?:.* )?(?:text|texts|content|body|title|titles|comment|comments|post|posts|tweet|message|messages|review|query"
    r"|queries|search|searches|searched|question|answer|caption|summary|headline|note|notes|diary|activity|watched|posted|tags?"
    r"|keywords?|page|video|song|film|movie|book|app|event)"
    r"|.*(?:内容|正文|标题|评论|帖子|搜索词|关键词|微博|文本|弹幕|发帖|动态|描述|留言|笔记)"
)
_FACT = re.compile(
    r"region|province|state|city|country|nationality|language|interests?|hobby|hobbies|bio|biography|signature"
    r"|about(?: me)?|地区|省份?|城市|国家|签名|个性签名|简介|兴趣(?:爱好)?|爱好|星座|语言"
)
_WEIGHT = re.compile(r"minutes|mins|duration|hours|seconds|watch time|dwell time|时长|观看时长|分钟数?|秒数")
_COUNT = re.compile(r"count|times|plays|frequency|freq|次数|播放次数|观看次数")


class Column(NamedTuple):
    """What was seen of a column in the first rows, and what it may be."""

    name: str
    filled: float
    """Share of the rows whose cell is not empty, 0..1."""
    distinct: int
    example: str
    role: str
    """`user id`, `time`, `text`, `self-reported`, `weight`, `count`, `personal, left out` or `left out`."""


class Proposal(NamedTuple):
    """A guess at a column map."""

    columns: list[Column]
    rows: int
    """Rows that were looked at."""
    raw: dict[str, Any]
    """The map as plain data; its `user` is FILL_IN where no column looks like a user's id."""
    doubts: list[str]
    """What a person should decide. Empty only where every column that is used says by its name what it is."""

    def to_yaml(self) -> str:
        """The map with its doubts as comments."""
        comments = "".join(f"# Check: {doubt}\n" for doubt in self.doubts)
        return comments + yaml.safe_dump(self.raw, allow_unicode=True, sort_keys=False, width=100)


class _Seen:
    """A column's cells in the sample, None where empty."""

    def __init__(self, name: str, cells: Sequence[str | None]) -> None:
        self.name = name
        self.cells = cells
        self.filled = [c for c in cells if c is not None]
        self.distinct = len(set(self.filled))
        self.folded = fold(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name))
        self.length = sum(map(_width, self.filled)) / max(1, len(self.filled))
        self.numbers = self._share(is_number)
        self.dates = self._share(looks_like_date)
        self.personal = is_personal_name(name) or self._share(is_personal_value) > 0.2

    def _share(self, test: Any) -> float:
        sample = self.filled[:2000]
        return sum(map(test, sample)) / len(sample) if sample else 0.0


def _width(cell: str) -> int:
    return sum(1 if c < "\u2e80" else 3 for c in cell[:100])


def propose(table: Table, taxonomy: Taxonomy, missing: Missing) -> Proposal:
    """Look at the first `SAMPLE_ROWS` rows and propose a column map."""
    seen = [_Seen(name, cells) for name, cells in zip(table.columns, _sample(table, missing), strict=True)]
    rows = len(seen[0].cells)
    doubts: list[str] = []
    roles: dict[str, str] = {s.name: "personal, left out" if s.personal else "left out" for s in seen}
    free = [s for s in seen if not s.personal and s.filled]

    user = _user(seen, free, doubts)
    free = [s for s in free if s is not user]
    time = _time(free, doubts)
    free = [s for s in free if s is not time]
    fields = {fold(f) for a in taxonomy.attributes for f in (*a.self_reported, a.name)}
    reported = [s for s in free if s.folded in fields]
    texts = [s for s in free if s not in reported and s.numbers < 0.5 and _is_text(s)]
    texts_by_look = [
        s for s in free
        if s not in reported and s not in texts and s.numbers < 0.2 and s.dates < 0.2 and s.length >= 18
        and s.distinct > 0.2 * len(s.filled) and not _is_fact(s)
    ]  # fmt: skip
    facts = [
        s for s in free if s not in reported and s not in texts and _is_fact(s) and _is_constant(s, user)
    ]
    weight = next((s for s in free if _WEIGHT.fullmatch(s.folded) and s.numbers > 0.9), None)
    count = next((s for s in free if _COUNT.fullmatch(s.folded) and s.numbers > 0.9), None)

    if reported:
        names = ", ".join(repr(s.name) for s in reported)
        doubts.append(
            f"{names}: what users say of themselves, which the model sees (`self_reported`), or the truth to compare"
            " with (`gold`)?"
        )
    if texts_by_look:
        names = ", ".join(repr(s.name) for s in texts_by_look)
        doubts.append(f"{names}: taken for texts of the users by the look alone; take away what is none")
    texts = [s for s in seen if s in texts or s in texts_by_look]
    if not texts:
        doubts.append("no column looks like text: name those that say what users did or wrote")

    one_each = user is not None and user.distinct == len(user.filled)
    raw: dict[str, Any] = {"user": user.name if user else _FILL_IN}
    if time is not None:
        raw["time"] = time.name
    raw["sources"] = {}
    for s in texts:
        part: dict[str, Any] = {"column": s.name}
        if (separator := _separator(s, one_each)) is not None:
            part["separator"] = separator
            doubts.append(f"{s.name!r}: are its cells lists with {separator!r} between the texts?")
        if len(texts) == 1:
            part |= {
                key: found.name for key, found in (("weight", weight), ("count", count)) if found is not None
            }
        raw["sources"]["texts" if s.name in ("user_id", "self_reported") else s.name] = part
    if reported or facts:
        raw["self_reported"] = {s.name: s.name for s in (*reported, *facts)}

    members_of: dict[str, list[_Seen | None]] = {
        "count": [count], "weight": [weight], "text": [*texts], "self-reported": [*reported, *facts], "time": [time],
        "user id": [user],
    }  # fmt: skip
    for role, members in members_of.items():
        if role not in ("count", "weight") or len(texts) == 1:
            roles.update({s.name: role for s in members if s is not None})
    columns = [
        Column(s.name, len(s.filled) / max(1, rows), s.distinct, _example(s), roles[s.name]) for s in seen
    ]
    return Proposal(columns, rows, raw, doubts)


def _sample(table: Table, missing: Missing) -> list[list[str | None]]:
    """Cells by column, cut short."""
    columns: list[list[str | None]] = [[] for _ in table.columns]
    size = 0
    for _, cells in islice(read_rows(table), SAMPLE_ROWS):
        if len(cells) < len(columns):
            continue
        for column, cell in zip(columns, cells, strict=False):
            cell = cell.strip()[:_LONGEST_KEPT]
            column.append(None if missing(cell) else cell)
            size += len(cell)
        if size > _SAMPLE_CHARS:
            break
    return columns


def _user(seen: Sequence[_Seen], free: Sequence[_Seen], doubts: list[str]) -> _Seen | None:
    for pattern in _USER:
        found = [s for s in free if pattern.fullmatch(s.folded) and s.dates < 0.5]
        if len(found) > 1:
            names = " or ".join(repr(s.name) for s in found)
            doubts.append(f"which column is the user's id: {names}?")
        if found:
            if pattern is not _USER[0]:
                doubts.append(f"{found[0].name!r}: is it the user's id, and not that of the row?")
            return found[0]
    personal = [s.name for s in seen if s.personal and s.distinct > 1 and s.numbers < 1]
    hint = f"; {personal[0]!r} names persons and is left for you to decide" if personal else ""
    doubts.append(
        f"no column looks like a user's id: name it, or say {'#row'!r} where every row is a user of its own{hint}"
    )
    return None


def _time(free: Sequence[_Seen], doubts: list[str]) -> _Seen | None:
    dated = [s for s in free if s.dates >= 0.8 and not _NO_EVENT.search(s.folded)]
    found = [s for s in dated if _TIME.fullmatch(s.folded)] or [s for s in dated if s.numbers < 0.5]
    if len(found) > 1:
        names = " or ".join(repr(s.name) for s in found)
        doubts.append(f"which column is the time of what the user did: {names}?")
    return found[0] if found else None


def _is_text(s: _Seen) -> bool:
    return _TEXT.fullmatch(s.folded) is not None and s.dates < 0.5


def _is_fact(s: _Seen) -> bool:
    return _FACT.fullmatch(s.folded) is not None


def _is_constant(s: _Seen, user: _Seen | None) -> bool:
    """Whether nearly every user has one value: an attribute of users, not of what they did."""
    if user is None:
        return False
    values: dict[str, set[str]] = {}
    for who, cell in zip(user.cells, s.cells, strict=True):
        if who is not None and cell is not None:
            values.setdefault(who, set()).add(cell)
    return sum(len(v) == 1 for v in values.values()) >= 0.95 * len(values)


def _separator(s: _Seen, one_each: bool) -> str | None:
    cells = s.filled[:500]
    listed = sum(c.startswith("[") and c.endswith("]") and split_cell(c, "json") is not None for c in cells)
    if cells and listed > 0.9 * len(cells):
        return "json"
    if not one_each:
        return None
    shares = {mark: sum(mark in c.strip(mark) for c in cells) / max(1, len(cells)) for mark in _SEPARATORS}
    best = max(_SEPARATORS, key=shares.__getitem__)
    return best if shares[best] >= 0.6 else None


def _example(s: _Seen) -> str:
    """The first cell, cut short; of a column that names persons not shown at all."""
    if s.personal:
        return "(not shown)" if s.filled else ""
    text = " ".join(s.filled[0].split()) if s.filled else ""
    return text if len(text) <= 40 else text[:39] + "…"
