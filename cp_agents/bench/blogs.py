"""The Blog Authorship Corpus: one file a blogger, `ID.gender.age.industry.sign.xml`.

The files look like XML and are none: no file is escaped, and several are in unknown encodings. They are read as what
they are, dates and posts between marks.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from cp_agents.bench.prepared import Prepared
from cp_agents.bench.published import Published, decode, published_files
from cp_agents.bench.rules import Rules, as_number, load_rules, read_fields
from cp_agents.bench.writing import Entry
from cp_agents.errors import InputError
from cp_agents.taxonomy import Taxonomy

SOURCE = "posted"
"""The cue source: a post a line, with its date."""
FORM = "xml"
_NAME = re.compile(
    r"(?P<id>\d+)\.(?P<gender>\w+)\.(?P<age>\d{1,3})\.(?P<industry>[\w .&-]+)\.(?P<sign>\w+)\.xml", re.I
)
_MARK = re.compile(r"<(date|post)>", re.IGNORECASE)
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MOST_BLOG = 64 << 20


def prepare_blogs(
    path: str | Path, rules_file: str | Path = "blogs", *, include_minors: bool = False
) -> Prepared:
    """Records and gold of bloggers: posts with dates as cues; gender, age, industry and student as gold.

    Bloggers under the rules' `adult_age` are left out unless `include_minors`. Raises `InputError` that names the file
    and what was expected.
    """
    rules, taxonomy = load_rules(rules_file)
    if FORM not in rules.formats:
        raise InputError(f"rules {rules_file}: no format {FORM!r}")
    named = [
        (file, match)
        for file in published_files([path])
        if (match := _NAME.fullmatch(_base(file))) is not None
    ]
    if not named:
        raise InputError(
            f"{path}: no blogs (expected files named ID.gender.age.industry.sign.xml, or a zip of them)"
        )
    left_out: dict[str, int] = {}
    notes = ("Bloggers under 18 are kept.",) if include_minors else ()
    entries = _entries(named, rules, taxonomy, 0 if include_minors else rules.adult_age or 0, left_out)
    return Prepared(rules, rules.formats[FORM], entries, left_out, notes=notes)


def _base(file: Published) -> str:
    return file.name.rpartition("/")[2]


def _entries(
    named: list[tuple[Published, re.Match[str]]], rules: Rules, taxonomy: Taxonomy, least_age: int,
    left_out: dict[str, int],
) -> Iterator[Entry]:  # fmt: skip
    for file, match in named:
        age = as_number(match["age"])
        if age is None or age < least_age:
            left_out[f"bloggers under {least_age}"] = left_out.get(f"bloggers under {least_age}", 0) + 1
            continue
        posts = list(read_posts(decode(file.read(_MOST_BLOG))))
        if not posts:
            left_out["blogs without a post"] = left_out.get("blogs without a post", 0) + 1
            continue
        truth = rules.truth_of(read_fields(rules.formats[FORM], match.groupdict(), left_out), taxonomy)
        yield Entry(match["id"], {SOURCE: posts}, {"truth": truth})


def read_posts(text: str) -> Iterator[dict[str, str]]:
    """The posts of a blog, `{"text", "time"}`, the time where its date can be read.

    A mark that is never closed ends at the next mark. Takes time in proportion to the text.
    """
    time = None
    for mark, content in _marked(text):
        if mark == "date":
            time = _day(content)
        elif words := " ".join(html.unescape(content).split()):
            yield {"text": words, "time": time} if time else {"text": words}


def _marked(text: str) -> Iterator[tuple[str, str]]:
    opened = list(_MARK.finditer(text))
    for number, mark in enumerate(opened):
        end = opened[number + 1].start() if number + 1 < len(opened) else len(text)
        content = text[mark.end() : end]
        closed = content.lower().find(f"</{mark[1].lower()}>")
        yield mark[1].lower(), content if closed < 0 else content[:closed]


def _day(text: str) -> str | None:
    """`31,May,2004` as an ISO date; None for months in other languages and days that there are not."""
    parts = [part.strip() for part in text.split(",")]
    if (
        len(parts) != 3
        or parts[1].lower() not in _MONTHS
        or not (parts[0].isdecimal() and parts[2].isdecimal())
    ):
        return None
    try:
        return date(int(parts[2]), _MONTHS.index(parts[1].lower()) + 1, int(parts[0])).isoformat()
    except ValueError:
        return None
