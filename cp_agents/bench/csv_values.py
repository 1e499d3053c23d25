"""What a cell says: nothing, a number, something that names a person, a list."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from functools import lru_cache

from cp_agents.taxonomy import fold

_MISSING = (
    "", "null", "(null)", "<null>", "nan", "none", "nil", "na", "n/a", "n.a.", "<na>", "#n/a", "nat", r"\n", "-", "--",
    "---", "—", "——", "/", ".", "?", "无", "空", "暂无", "缺失", "未填", "未填写", "missing",
)  # fmt: skip
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_ROUNDED = re.compile(r"\d(?:\.\d+)?E\+\d+", re.ASCII)
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+\.[A-Za-z]{2,24}")
_PHONE = re.compile(r"(?:\+?86[ -]?)?1[3-9]\d{9}|\+\d[\d ()-]{7,17}|\(?\d{3}\)?[ -]\d{3}[ -]\d{4}", re.ASCII)
_IDENTITY = re.compile(r"[1-9]\d{16}[\dXx]|\d{3}-\d\d-\d{4}", re.ASCII)
_NETWORK = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}", re.ASCII)
_PERSONAL_NAME = re.compile(
    r"(?:first|last|middle|full|family|given|sur|real|user|nick|screen|display|author|customer|legal)?[ _-]?name"
    r"|e-?mail(?:[ _-]?addr(?:ess)?)?|(?:mobile|cell|tele)?(?:[ _-]?phone)(?:[ _-]?(?:no|number))?|mobile|tel|fax"
    r"|(?:home|street|postal|mailing|ip)?[ _-]?addr(?:ess)?|street|zip(?:[ _-]?code)?|post(?:al)?[ _-]?code|ip"
    r"|ssn|passport(?:[ _-]?no)?|iban|(?:credit[ _-]?)?card(?:[ _-]?(?:no|number))?|password|token|cookie|imei|idfa"
    r"|(?:device|open|union)[ _-]?id|lat(?:itude)?|lon(?:gitude)?|lng|wechat|weixin|qq|whatsapp|facebook|instagram"
    r"|twitter|avatar|photo|birth[ _-]?da(?:te|y)|date[ _-]?of[ _-]?birth|dob"
    r"|(?:真实|用户)?姓名|名字|昵称|用户名|网名|电子邮[件箱]|邮[件箱](?:地址)?|(?:手机|电话|联系)(?:号码?|电话|方式)?"
    r"|(?:家庭|收货|联系|详细)?(?:住址|地址)|邮编|身份证(?:号码?)?|证件号码?|护照号?|银行卡号?|密码|微信号?|设备号|头像"
    r"|生日|出生(?:日期|年月)"
)


def is_number(cell: str) -> bool:
    """A plain decimal number."""
    return _NUMBER.fullmatch(cell) is not None


def is_rounded(cell: str) -> bool:
    """A number as a spreadsheet writes a long id that it has rounded: 1.23457E+15."""
    return _ROUNDED.fullmatch(cell) is not None


def is_personal_value(cell: str) -> bool:
    """An e-mail address, a telephone number, an identity number or a network address, and nothing else."""
    return any(p.fullmatch(cell) is not None for p in (_EMAIL, _PHONE, _IDENTITY, _NETWORK))


def is_personal_name(column: str) -> bool:
    """Whether a column's name says that it names, locates or reaches a person."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column)
    return _PERSONAL_NAME.fullmatch(fold(spaced)) is not None


class Missing:
    """Spellings of an empty cell, folded: the usual ones and the user's own."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._folded = {fold(word) for word in (*_MISSING, *more)}
        self._longest = max(map(len, self._folded)) + 8
        self._no_digits = not any(word[-1:].isdigit() for word in self._folded)
        self._is_short_one = lru_cache(maxsize=1 << 16)(lambda cell: fold(cell) in self._folded)

    def __call__(self, cell: str) -> bool:
        """Whether a stripped cell says nothing."""
        if not cell or len(cell) > self._longest:
            return not cell
        if self._no_digits and cell[-1].isdigit():  # ids and numbers, most short cells there are
            return False
        return self._is_short_one(cell)


def split_cell(cell: str, separator: str | None) -> list[str] | None:
    """The texts of a cell: one, or several where the column has a separator; `json` reads a list as Python or JSON
    writes it. None where such a list cannot be read."""
    if separator is None:
        return [cell]
    if separator != "json":
        return [part for part in map(str.strip, cell.split(separator)) if part]
    try:
        listed = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            listed = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    if not isinstance(listed, list | tuple):
        return None
    return [part for item in listed if isinstance(item, str | int | float) and (part := str(item).strip())]
