"""MovieLens-100K and 1M: the official release, or the 100K copy in recbole's atomic files."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cp_agents.bench.prepared import Prepared
from cp_agents.bench.published import Published, matching, published_files, the_file
from cp_agents.bench.rules import Rules, as_number, load_rules, read_fields
from cp_agents.bench.writing import Entry
from cp_agents.errors import InputError
from cp_agents.taxonomy import Taxonomy

SOURCE = "films_rated_1_to_5"
"""The cue source: a film a line, its weight is the rating."""
_EXPECTED = (
    "expected u.data, u.user and u.item (MovieLens-100K), ratings.dat, users.dat and movies.dat (1M), or recbole's"
    " ml-100k.inter, .user and .item"
)


class Release(NamedTuple):
    """How a release is written."""

    form: str
    """The format of the rules."""
    separator: str
    encoding: str
    ratings: str
    users: str
    films: str
    user_columns: tuple[str, ...]
    """Empty where the file has a header with names of its own."""


RELEASES = (
    Release(
        "ml-100k",
        "\t",
        "latin-1",
        r"u\.data",
        r"u\.user",
        r"u\.item",
        ("user", "age", "gender", "occupation"),
    ),
    Release(
        "ml-1m",
        "::",
        "latin-1",
        r"ratings\.dat",
        r"users\.dat",
        r"movies\.dat",
        ("user", "gender", "age", "occupation"),
    ),
    Release("ml-100k", "\t", "utf-8", r"ml-100k\.inter", r"ml-100k\.user", r"ml-100k\.item", ()),
)


def prepare_movielens(path: str | Path, rules_file: str | Path = "movielens") -> Prepared:
    """Records and gold of a release: films with rating and time as cues, gender, age and occupation as gold.

    Raises `InputError` that names the file and what was expected.
    """
    rules, taxonomy = load_rules(rules_file)
    files = published_files([path])
    release = next((r for r in RELEASES if matching(files, r.ratings)), None)
    if release is None:
        raise InputError(f"{path}: no MovieLens release ({_EXPECTED})")
    ratings, users, films = (
        the_file(files, pattern, pattern.replace("\\", ""), str(path))
        for pattern in (release.ratings, release.users, release.films)
    )
    if release.form not in rules.formats:
        raise InputError(f"rules {rules_file}: no format {release.form!r}, which {path} is in")
    left_out: dict[str, int] = {}
    entries = _entries(release, ratings, users, films, files, rules, taxonomy, left_out)
    return Prepared(rules, rules.formats[release.form], entries, left_out)


def _entries(
    release: Release, ratings: Published, users: Published, films: Published, files: list[Published],
    rules: Rules, taxonomy: Taxonomy, left_out: dict[str, int],
) -> Iterator[Entry]:  # fmt: skip
    titles = _titles(release, films, files, rules)
    rated = _ratings(release, ratings, titles)
    form = rules.formats[release.form]
    for row in _users(release, users):
        found = rated.pop(row["user"], None)
        if found is None:
            left_out["users without a rating"] = left_out.get("users without a rating", 0) + 1
            continue
        truth = rules.truth_of(read_fields(form, row, left_out), taxonomy)
        yield Entry(row["user"], {SOURCE: list(_films(found, titles))}, {"truth": truth})
    if rated:
        raise InputError(
            f"{ratings.where}: {len(rated):,} users are not in {users.where}, the first is {next(iter(rated))!a}"
        )


def _films(found: array[float], titles: dict[str, str]) -> Iterator[dict[str, object]]:
    rows = sorted(zip(found[2::3], found[0::3], found[1::3], strict=True))
    for seconds, film, rating in rows:
        time = datetime.fromtimestamp(seconds, UTC).date().isoformat()
        yield {"text": titles[f"{film:.0f}"], "weight": rating, "time": time}


def _cells(
    release: Release, file: Published, columns: int, separator: str | None = None
) -> Iterator[tuple[str, list[str]]]:
    """The rows of a file without a header, with a place to name in messages."""
    for number, line in enumerate(file.lines(release.encoding), 1):
        if not line.strip():
            continue
        where = f"{file.where} line {number}"
        cells = line.split(separator or release.separator)
        if len(cells) < columns:
            raise InputError(
                f"{where}: {len(cells)} fields, expected {columns} or more separated by"
                f" {(separator or release.separator)!r}"
            )
        yield where, cells


def _table(release: Release, file: Published, *needed: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of an atomic file: a header of `name:type`, then cells between tabs."""
    rows = _cells(release, file, 1)
    _, header = next(rows, ("", []))
    names = [cell.partition(":")[0] for cell in header]
    for name in needed:
        if name not in names:
            raise InputError(
                f"{file.where}: no column {name!r} (columns: {', '.join(names)[:200] or 'none'})"
            )
    for where, cells in rows:
        if len(cells) != len(names):
            raise InputError(f"{where}: {len(cells)} fields, the header has {len(names)}")
        yield where, dict(zip(names, cells, strict=True))


def _users(release: Release, file: Published) -> Iterator[Mapping[str, str]]:
    if not release.user_columns:
        for _, row in _table(release, file, "user_id", "gender", "age", "occupation"):
            yield {**row, "user": row["user_id"]}
        return
    separator = "|" if release.form == "ml-100k" else release.separator
    for _, cells in _cells(release, file, len(release.user_columns), separator):
        yield dict(zip(release.user_columns, cells, strict=False))


def _ratings(release: Release, file: Published, titles: dict[str, str]) -> dict[str, array[float]]:
    """By user, three numbers a rating: film, rating, seconds. Packed, as there are a million."""
    found: dict[str, array[float]] = {}
    if release.user_columns:
        rows = ((where, cells[:4]) for where, cells in _cells(release, file, 4))
    else:
        names = ("user_id", "item_id", "rating", "timestamp")
        rows = ((where, [row[name] for name in names]) for where, row in _table(release, file, *names))
    for where, (user, film, rating, seconds) in rows:
        value, time = as_number(rating), as_number(seconds)
        if value is None or not 0 <= value <= 5:
            raise InputError(f"{where}: the rating should be a number of 0 to 5, found {rating[:40]!a}")
        if time is None or not 0 <= time < 1 << 32:
            raise InputError(f"{where}: the timestamp should be seconds since 1970, found {seconds[:40]!a}")
        if film not in titles:
            raise InputError(f"{where}: the film {film[:40]!a} is not in the list of films")
        found.setdefault(user, array("d")).extend((float(film), value, time))
    if not found:
        raise InputError(f"{file.where}: no ratings")
    return found


def _titles(release: Release, file: Published, files: list[Published], rules: Rules) -> dict[str, str]:
    """What each film is called, with year and genres."""
    found: dict[str, str] = {}
    for where, film, title, genres in _film_rows(release, file, files, rules):
        if not film.isdecimal() or not title:
            raise InputError(f"{where}: expected the number and the title of a film, found {film[:40]!a}")
        known = [genre for genre in genres if genre and genre != "unknown"]
        found[str(int(film))] = ", ".join([title, *known])
    return found


def _film_rows(
    release: Release, file: Published, files: list[Published], rules: Rules
) -> Iterator[tuple[str, str, str, list[str]]]:
    if not release.user_columns:
        for where, row in _table(release, file, "item_id", "movie_title"):
            year = row.get("release_year", "")
            title = f"{row['movie_title']} ({year})" if year.isdecimal() else row["movie_title"]
            yield where, row["item_id"], title, row.get("class", "").split(" ")
    elif release.form == "ml-1m":
        for where, cells in _cells(release, file, 3):
            yield where, cells[0], "::".join(cells[1:-1]), cells[-1].split("|")
    else:
        names = _genre_names(files, rules)
        for where, cells in _cells(release, file, 5 + len(names), "|"):
            flags = cells[5 : 5 + len(names)]
            yield (
                where,
                cells[0],
                cells[1],
                [name for name, flag in zip(names, flags, strict=True) if flag == "1"],
            )


def _genre_names(files: list[Published], rules: Rules) -> list[str]:
    if not (own := matching(files, r"u\.genre")):
        return rules.genres
    return [line.rpartition("|")[0] for line in own[0].lines("latin-1") if "|" in line]
