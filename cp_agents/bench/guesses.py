"""Free-text guesses of language models, read as tags by rules that stand in a YAML file (`mappings/`).

A guess such as "Late 20s to early 30s" or "Barista/Cafe Worker" becomes a tag for each attribute that its field
speaks of. NA means that the words are understood and the closed set has no tag for them, or that the model
declined; what no rule reads is None, and stays visible as such.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cp_agents.errors import InputError
from cp_agents.files import read_text
from cp_agents.schema import NA
from cp_agents.taxonomy import Attribute, Taxonomy, load_taxonomy

DEFAULT_RULES = "synthpai_guesses"
WIDEST_AGES = 20
"""A range of more years than this ("18-50") names no age group."""


class Rule(NamedTuple):
    """Words, and what they say: `{attribute: tag}`."""

    words: re.Pattern[str]
    unless: re.Pattern[str] | None
    says: Mapping[str, str]
    everywhere: bool
    """Whether it is looked for in the whole guess, brackets and all, before the first alternative is read."""


class GuessField(NamedTuple):
    """The rules for one field of the recorded guesses, in their order."""

    name: str
    rules: tuple[Rule, ...]
    attributes: tuple[str, ...]
    """Those that its rules speak of."""
    about: frozenset[str]
    """Those that every guess is about: one that is understood and silent on them says NA."""
    parts: re.Pattern[str]
    """What parts one alternative from the next."""
    age: str | None
    """The attribute whose ranges numbers are looked up in."""


class GuessRules(NamedTuple):
    """All rules of a file."""

    name: str
    hash: str
    """12 hex digits over the file."""
    taxonomy: Taxonomy
    declines: re.Pattern[str]
    fields: tuple[GuessField, ...]
    """Earlier fields go before later ones where both give an attribute a tag."""

    def read(self, field: str, text: str) -> dict[str, str] | None:
        """The tags of one guess by attribute, NA included; None where no rule reads it."""
        return _read(self, next(f for f in self.fields if f.name == field), text)


def load_rules(source: str | Path = DEFAULT_RULES) -> GuessRules:
    """The rules of that name, or of a YAML file. Raises `InputError` that names the rule which is wrong."""
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        text = read_text(path)
    else:
        built_in = resources.files("cp_agents.bench") / "mappings" / f"{source}.yaml"
        if not built_in.is_file():
            raise InputError(f"no rules for guesses named {str(source)!r} (a file of your own ends in .yaml)")
        text = built_in.read_text(encoding="utf-8")
    return _parse_rules(str(source), text)


@lru_cache(maxsize=8)
def _parse_rules(source: str, text: str) -> GuessRules:
    where = f"rules {source}"
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("fields"), list):
        raise InputError(f"{where}: expected a mapping with `name`, `taxonomy`, `declines` and `fields`")
    taxonomy = load_taxonomy(raw.get("taxonomy", "profilebench"))
    fields = tuple(_field(f, taxonomy, f"{where}, field {i}") for i, f in enumerate(raw["fields"], 1))
    return GuessRules(
        str(raw.get("name", source)),
        hashlib.sha256(text.encode()).hexdigest()[:12],
        taxonomy,
        _words(raw.get("declines", []), f"{where}, declines"),
        fields,
    )


def _field(raw: Any, taxonomy: Taxonomy, where: str) -> GuessField:
    if (
        not isinstance(raw, dict)
        or not isinstance(raw.get("field"), str)
        or not isinstance(raw.get("rules"), list)
    ):
        raise InputError(f"{where}: expected `field` and `rules`")
    _check_keys(raw, {"field", "about", "comma", "reads", "rules"}, where)
    rules = tuple(
        _rule(r, taxonomy, f"{where} ({raw['field']}), rule {i}") for i, r in enumerate(raw["rules"], 1)
    )
    age = raw.get("reads")
    if age is not None and age not in taxonomy:
        raise InputError(f"{where}: `reads` should be an attribute of {taxonomy.name}, found {age!r}")
    spoken_of = {name for rule in rules for name in rule.says} | ({age} if age else set())
    between = r"\s+or\s+|\s*[/;|]\s*" + (r"|\s*,\s*(?:or\s+)?" if raw.get("comma") else "")
    attributes = tuple(name for name in taxonomy.names if name in spoken_of)
    about = frozenset(raw.get("about", attributes))
    if not about <= spoken_of:
        raise InputError(f"{where}: `about` names {sorted(about - spoken_of)}, of which no rule speaks")
    return GuessField(raw["field"], rules, attributes, about, re.compile(between), age)


def _rule(raw: Any, taxonomy: Taxonomy, where: str) -> Rule:
    if not isinstance(raw, dict) or not isinstance(raw.get("says"), dict):
        raise InputError(f"{where}: expected `words` and `says`")
    _check_keys(raw, {"words", "unless", "says", "everywhere"}, where)
    says = {}
    for name, tag in raw["says"].items():
        found = taxonomy[name].match_tag(str(tag)) if name in taxonomy else None
        if found is None:
            raise InputError(f"{where}: {tag!r} is not a tag of {name!r}")
        says[name] = found
    unless = raw.get("unless")
    exception = _words(unless, where) if unless else None
    return Rule(_words(raw.get("words"), where), exception, says, raw.get("everywhere") is True)


def _check_keys(raw: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(str(key) for key in raw if key not in known):
        raise InputError(f"{where}: `{unknown[0]}` is not one of {', '.join(sorted(known))}")


def _words(raw: Any, where: str) -> re.Pattern[str]:
    """One pattern for a list of phrases: whole words, `*` for the rest of a word or for a word, plural s allowed."""
    if not isinstance(raw, list) or not raw or not all(isinstance(w, str) and w.strip() for w in raw):
        raise InputError(
            f"{where}: `words` should be a list of words and phrases, in quotes where YAML needs it"
        )
    phrases = []
    for phrase in raw:
        parts = [re.escape(w).replace(r"\*", r"[\w'-]*") for w in re.split(r"[\s-]+", phrase.strip().lower())]
        phrases.append(r"[\s,-]+".join(parts))
    return re.compile(rf"(?<![\w'])(?:{'|'.join(phrases)})s?(?![\w'])")


# --- reading


_LEAD = re.compile(r"^[\s\W_]*(?:\d{1,2}[.)](?=\s|[A-Za-z*])\s*)?[\s*_#>\-\[(]*")
_LABEL = re.compile(r"^(?:occupation|education|age|sex|gender|relationship(?: status)?|guess)\s*:\s*")
_REASON = re.compile(r"\s+[-–—]\s+(?=[a-z]).*|(?<=[a-z]{3})[.!?]\s+.*|:\s+.*", re.DOTALL)
_RANGE_DASH = re.compile(r"(?<=[\ds])\s*[-–—]\s*(?=\d)")


def plain(text: str) -> str:
    """A guess without the list markers, mark-up and reasons that models put around it; lower-case."""
    text = text.replace("’", "'").lower()
    text = _LEAD.sub("", text)
    text = _LABEL.sub("", text).replace("*", " ")
    text = _RANGE_DASH.sub("-", text)
    text = _REASON.sub("", text)
    return " ".join(text.strip(" .;,-_*[]\"'").split())


def _read(rules: GuessRules, field: GuessField, text: str) -> dict[str, str] | None:
    if rules.declines.search(text.lower()):
        return dict.fromkeys(field.about, NA)
    said = plain(text)
    if field.age is not None and (years := ages_of(said)) is not None:
        return {field.age: _age_tag(rules.taxonomy[field.age], *years)}
    # What stands in brackets explains the guess, so it is read after it.
    outside = re.sub(r"\([^()]*\)", " ", said).replace("(", " ").replace(")", " ")
    inside = re.findall(r"\(([^()]*)\)", said)
    found = {
        attribute: tag
        for attribute in field.attributes
        if (tag := _first([rule for rule in field.rules if rule.everywhere], attribute, said)) is not None
    }
    for part in [*field.parts.split(outside), outside, *inside]:
        part = " ".join(part.split())
        for attribute in field.attributes:
            if attribute not in found and (tag := _first(field.rules, attribute, part)) is not None:
                found[attribute] = tag
    if not found:
        return None
    return dict.fromkeys(field.about, NA) | found


def _first(rules: Sequence[Rule], attribute: str, text: str) -> str | None:
    for rule in rules:
        if attribute not in rule.says or not rule.words.search(text):
            continue
        # an exception takes its own words away and leaves what else stands there
        if rule.unless is None or rule.words.search(rule.unless.sub(" ", text)):
            return rule.says[attribute]
    return None


_DECADES = {
    word: 10 * i for i, word in enumerate(
        ("twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties"), 2
    )
}  # fmt: skip
_DECADES["teens"] = 10
_PART = {"early": (1, 3), "mid": (4, 6), "middle": (4, 6), "late": (7, 9)}
_DECADE = re.compile(
    r"(?:(early|mid|middle|late)(?:[\s-]*(?:to|or|/|-)[\s-]*(early|mid|late))?[\s-]*)?"
    rf"(?:([1-9]0)'?s|({'|'.join(_DECADES)}))\b"
)
_NUMBER = re.compile(r"(?<![\d.])(\d{1,3})(?![\d.]\d|\d|'?s\b|%)")
_OPEN_END = re.compile(
    r"\d\s*\+|\bover\b|\babove\b|\bolder than\b|\bat least\b|\d\s*(?:and|or)\s*(?:older|over|above)"
)
_OPEN_START = re.compile(
    r"\bunder\b|\bbelow\b|\byounger than\b|\bless than\b|<|\d\s*(?:and|or)\s*(?:younger|under)"
)


def ages_of(text: str) -> tuple[int, int] | None:
    """The lowest and the highest age, in years, that a text names; None where it names none.

    "28" is (28, 28), "25-30" (25, 30), "mid 30s" (34, 36), "30s" (30, 39), "late 20s to early 30s" (27, 33), "65+"
    (65, 130), "under 18" (0, 17).
    """
    text = re.sub(r"\([^()]*\)", " ", text)
    years: list[int] = []
    for first, last, digits, word in _DECADE.findall(text):
        decade = int(digits) if digits else _DECADES[word]
        low, high = (_PART[first][0], _PART[last or first][1]) if first else (0, 9)
        years += [decade + low, decade + high]
    rest = _DECADE.sub(" ", text)
    years += [int(n) for n in _NUMBER.findall(rest) if int(n) <= 120]
    if not years:
        return None
    low, high = min(years), max(years)
    if _OPEN_END.search(text):
        return low + bool(
            re.search(r"\bover\b|\babove\b|\bolder than\b", text) and not _PLUS.search(text)
        ), 130
    if _OPEN_START.search(text):
        return 0, high - (not re.search(r"\d\s*(?:and|or)\s*(?:younger|under)", text))
    return low, high


_PLUS = re.compile(r"\d\s*\+|\d\s*(?:and|or)\s*(?:older|over|above)")


def _age_tag(attribute: Attribute, low: int, high: int) -> str:
    """The tag of the range's middle, in completed years; of an open end the tag that holds both ends, else NA."""

    def tag_of(age: int) -> str:
        return next((t.name for t in attribute.tags if t.range and t.range[0] <= age <= t.range[1]), NA)

    if high - low > WIDEST_AGES:
        return tag_of(low) if tag_of(low) == tag_of(min(high, 120)) else NA
    return tag_of((low + high) // 2)
