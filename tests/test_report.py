"""The report of a run: its numbers are those of the store and of `evaluate`, and the page holds nothing that could run,
be fetched, or pass for a part of it."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents.calibration import UNCALIBRATED
from cp_agents.cli.app import app
from cp_agents.errors import BackendError, CpAgentsError, ErrorType, InputError, MissingExtraError, StoreError
from cp_agents.evaluation.loading import Gold
from cp_agents.evaluation.metrics import evaluate
from cp_agents.profiler import Profiler
from cp_agents.report import matrix
from cp_agents.report.calls import histogram
from cp_agents.report.excerpt import Span, excerpt
from cp_agents.report.gather import build_report
from cp_agents.report.model import Confusion, RunReport
from cp_agents.report.model_records import Case, Line, Segment
from cp_agents.report.numbers import Proportion
from cp_agents.report.render import render_report
from cp_agents.report.svg import Svg
from cp_agents.report.words import clean, escape, percent
from cp_agents.routing import ReviewPolicy
from cp_agents.stores.reviews import answer_one, open_reviews
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Attribute, Tag, Taxonomy, load_taxonomy
from tests.support import PETS, RECORD, ScriptedBackend, answer

pytest.importorskip("jinja2")

HOSTILE = [
    '</p><script>alert("x")</script>',
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!-- <svg onload=alert(1)> -->",
    "{{ 7*7 }} {% raw %}",
    "שלום עולם \u202egnp.exe مرحبا",
    "👩‍👩‍👧 🧑🏽‍🚀 café 尿布和婴儿车 &amp; &lt;b&gt;",
]
THEMES = ["newborn sleep schedule", "daycare costs", "my husband", "my wife", "pension plan", "exam revision"]
USERS = 90


def records() -> list[dict[str, Any]]:
    found = []
    for i in range(USERS):
        items = [[THEMES[(i + k) % len(THEMES)], 10 + (i * 7 + k) % 50] for k in range(1 + i % 4)]
        posted = [HOSTILE[i % len(HOSTILE)], THEMES[i % 5]]
        said = {"gender": "Female" if i % 3 else "Male"} if i % 2 else {}
        found.append({"user_id": f"user-{i:03}", "watched": items, "posted": posted, "self_reported": said})
    return found


GOLD: Gold = {
    f"user-{i:03}": {
        "gender": "female" if i % 2 else "Male",
        "life_stage": ["Parenting (Child 0-2)", "Single", "NA"][i % 3],
        "shoe_size": "42",
    }
    for i in range(USERS)
} | {"nobody": {"gender": "Male"}}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one lexicon run over hostile records, review rules on."""
    found = tmp_path_factory.mktemp("report") / "traces.db"
    with TraceStore(found) as store:
        policy = ReviewPolicy(audit_share=0.2)
        profiler = Profiler(store=store, samples=5, tau=2, review=policy, run="first")
        profiler.profile_many(records())
    return found


@pytest.fixture(scope="module")
def store(path: Path) -> Iterator[TraceStore]:
    with TraceStore(path) as found:
        yield found


@pytest.fixture(scope="module")
def report(store: TraceStore) -> RunReport:
    return build_report(store, gold=GOLD)


@pytest.fixture(scope="module")
def page(report: RunReport) -> str:
    return render_report(report)


class Seen(HTMLParser):
    """The elements, attributes and texts of a page; checks that what is opened is closed, in order."""

    VOID = frozenset({"meta", "link", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.links: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# -- the page ---------------------------------------------------------------------------------------------


def test_the_page_is_whole_small_and_fetches_nothing(page: str) -> None:
    seen = Seen(page)
    assert len(page.encode()) < 500_000
    assert all(link == "data:," or link.startswith("#") for link in seen.links)
    assert "http://" not in page
    assert "https://" not in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {link[1:] for link in seen.links if link.startswith("#")} <= anchors


def test_nothing_that_a_user_wrote_becomes_a_part_of_the_page(report: RunReport, page: str) -> None:
    seen = Seen(page)
    assert seen.tags["script"] == 1
    assert not seen.tags.keys() & {"img", "iframe", "object", "embed", "b&gt;"}
    assert not [name for name in seen.attributes if name.startswith("on")]
    text = "".join(seen.texts)
    assert '‹/p›‹script›alert("x")‹/script›' in text  # as the cues have it already
    assert "' onmouseover='alert(1)" in text
    assert "{{ 7*7 }} {% raw %}" in text
    assert "café 尿布和婴儿车 &amp; &lt;b&gt;" in text
    assert "👩‍👩‍👧" in text
    assert report.worst
    assert report.contested


def test_every_figure_is_well_formed(page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(figures) > 20
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.attrib["aria-label"]
        assert root.attrib["role"] == "img"
        for element in root.iter():
            numbers = [
                v
                for k, v in element.attrib.items()
                if k in ("x", "y", "cx", "cy", "width", "height", "points")
            ]
            assert not [v for v in numbers if "nan" in v or "inf" in v]


def test_the_same_store_gives_the_same_page(store: TraceStore, page: str) -> None:
    assert render_report(build_report(store, "first", gold=GOLD)) == page


text = st.text(max_size=60) | st.sampled_from(HOSTILE)


@pytest.fixture(scope="module")
def small(report: RunReport) -> RunReport:
    """One attribute and one case, so that many pages can be made of it."""
    nothing: dict[str, Any] = {"quality": None, "shapes": [], "splits": [], "worst": []}
    return report.model_copy(
        update={**nothing, "coverage": report.coverage[:1], "contested": report.contested[:1]}
    )


@settings(max_examples=40, deadline=None)
@given(words=text, user=text.filter(bool), tag=text.filter(bool))
def test_any_text_stays_text(small: RunReport, words: str, user: str, tag: str) -> None:
    found, plain = with_text(small, words, user, tag), with_text(small, "a", "b", "c")
    assert found.tags == plain.tags
    assert found.attributes == plain.attributes
    said = "".join(found.texts)
    # A parser reads a carriage return as a line break.
    assert clean(words).replace("\r\n", "\n").replace("\r", "\n") in said.replace("\r\n", "\n").replace(
        "\r", "\n"
    )


def with_text(small: RunReport, words: str, user: str, tag: str) -> Seen:
    segments = [Segment(text=words), Segment(text=words, kind="winner")]
    case = small.contested[0].model_copy(
        update={
            "user_id": user,
            "voted": tag,
            "runner_up": tag,
            "invented": [words],
            "lines": [Line(source=user, segments=segments)],
        }
    )
    return Seen(render_report(small.model_copy(update={"contested": [case]})))


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_may_stand_in_a_drawing(label: str, said: str) -> None:
    drawing = Svg(10, 10, label)
    drawing.text(1, 1, said, tip=label)
    drawing.rect(0, 0, 1, 1, "cell", said)
    root = ElementTree.fromstring(str(drawing))
    assert root[0].text is None or clean(said).replace("\r\n", "\n").replace("\r", "\n") == root[0].text
    assert escape(label).isprintable() or clean(label) == label or "\ufffd" in clean(label)


def test_the_colours_have_contrast_in_both_modes(page: str) -> None:
    """WCAG AA: 4.5 to 1 for text, on every ground that it stands on."""
    style = page[page.index("<style>") : page.index("</style>")]
    palettes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r"\{([^{}]*--paper: #[0-9a-f]{6}[^{}]*)\}", style)
    ]
    assert len(palettes) >= 3
    for colours in palettes[:3]:
        for ground in ("paper", "card", "note"):
            assert _contrast(colours["ink"], colours[ground]) >= 7
            assert _contrast(colours["soft"], colours[ground]) >= 4.5
            assert _contrast(colours["link"], colours[ground]) >= 4.5
        for ground in ("mark", "other", "cell"):
            assert _contrast(colours["ink"], colours[ground]) >= 4.5
        for shade in ("hit", "miss", "silent"):  # at the strongest that a matrix draws
            assert _contrast(colours["ink"], _blend(colours[shade], colours["cell"], 0.68)) >= 4.5
        for mark in ("blue", "orange", "axis"):
            assert _contrast(colours[mark], colours["card"]) >= 3


def _channels(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _blend(over: str, under: str, part: float) -> str:
    mixed = [part * a + (1 - part) * b for a, b in zip(_channels(over), _channels(under), strict=True)]
    return "#" + "".join(f"{round(255 * c):02x}" for c in mixed)


# -- the numbers ------------------------------------------------------------------------------------------


def test_coverage_counts_what_the_store_says(report: RunReport, store: TraceStore) -> None:
    said = store.rows("select attribute, count(*) from profile_attributes where tag <> 'NA' group by 1")
    assert {a.attribute: a.said.count for a in report.coverage} == dict(said)
    for found in report.coverage:
        assert sum(found.fates.values()) == found.n == USERS
    waiting = store.rows("select count(*) from profile_attributes where status = 'needs_review'")[0][0]
    assert sum(a.fates["waiting"] for a in report.coverage) == waiting == report.review.waiting > 0
    assert set(report.review.by_reason) == {"audit"}


def test_quality_is_what_evaluate_says(report: RunReport, store: TraceStore) -> None:
    lines = [
        {"user_id": user, "profile": json.loads(body)}
        for user, body in store.rows("select user_id, profile from records join profiles using (record_id)")
    ]
    known = {user: truth for user, truth in GOLD.items() if user != "nobody"}
    wanted = evaluate(lines, known, load_taxonomy())
    quality = report.quality
    assert quality is not None
    assert (quality.users, quality.not_in_run, quality.not_evaluated) == (USERS, 1, ["shoe_size"])
    assert [a.attribute for a in quality.attributes] == ["gender", "life_stage"]
    for found in quality.attributes:
        own = wanted.attributes[found.attribute].at_tau[1]
        assert (found.own.accuracy.value, found.own.coverage.value) == (own.selective_accuracy, own.coverage)
        assert found.macro_f1.value == pytest.approx(own.macro_f1)
        assert found.macro_f1.low <= found.macro_f1.value <= found.macro_f1.high  # type: ignore[operator]
        counts = found.confusion.counts
        assert sum(map(sum, counts)) == found.n_labelled + found.n_gold_na == USERS
        right = sum(
            row[found.confusion.columns.index(tag)]
            for tag, row in zip(found.confusion.rows, counts, strict=True)
            if tag != "NA"
        )
        assert right == own.correct
        assert found.reliability is not None
        assert sum(b.accuracy.n for b in found.reliability.bins) == found.reliability.n
        assert sum(p.n for p in found.reliability.levels) == found.reliability.n
    assert quality.averages.selective_accuracy.value == pytest.approx(wanted.average[1].selective_accuracy)


def test_shapes_and_splits_hold_every_vote(report: RunReport) -> None:
    for shape, split in zip(report.shapes, report.splits, strict=True):
        assert sum(shape.before) == sum(shape.rounded) == sum(shape.after) == shape.n
        assert sum(map(sum, split.kinds.values())) == split.n
        assert shape.n == split.n - sum(split.kinds["NA"])
        assert all(0 <= cut <= 5 for cut in shape.cuts)
        # Whoever is unanimous stands in the last step.
        assert split.unanimous <= sum(votes[-1] for votes in split.kinds.values())
    assert any(shape.calibrated and len(shape.cuts) > 1 for shape in report.shapes)


def test_the_worst_are_wrong_and_sure_and_the_contested_are_close(report: RunReport) -> None:
    for case in report.worst:
        assert case.gold not in (None, "NA", case.tag)
        assert case.status in ("accepted", "needs_review")
        assert sum(v.votes for v in case.votes) == case.survivors
    of_gender = [c for c in report.worst if c.attribute == "gender"]
    assert [c.confidence for c in of_gender] == sorted((c.confidence for c in of_gender), reverse=True)
    assert {c.attribute for c in report.worst} == {"gender", "life_stage"}
    margins = [c.margin for c in report.contested if c.attribute == report.contested[0].attribute]
    assert margins == sorted(margins)
    marked = [s for c in report.contested for line in c.lines for s in line.segments if s.kind]
    assert {s.kind for s in marked} == {"winner", "other"}


def test_calls_and_errors_count_every_sample(report: RunReport) -> None:
    assert report.calls.samples == 5 * USERS == sum(report.errors.outcomes.values())
    assert sum(report.calls.latency_counts) == report.calls.latency_n
    assert report.calls.latency["p50"] <= report.calls.latency["p99"] <= report.calls.latency["max"]


def test_a_persons_answer_counts_as_a_persons(tmp_path: Path) -> None:
    with TraceStore(tmp_path / "t.db") as store:
        profiler = Profiler(store=store, samples=3, review=ReviewPolicy(audit_share=1.0))
        profiler.profile_many(records()[:6])
        row = next(r for r in open_reviews(store) if r["attribute"] == "gender")
        gold: Gold = {row["user_id"]: {"gender": "Male"}}
        answer_one(store, row["review_id"], "Male", "ann")
        found = build_report(store, gold=gold)
    gender = found.coverage[0]
    assert (gender.fates["reviewed"], gender.fates["waiting"]) == (1, 5)
    assert found.review.answered == 1
    assert found.review.confirmed == (row["proposed"] == "Male")
    assert found.quality is not None
    assert found.quality.attributes[0].own.accuracy == Proportion(count=1, n=1)
    assert found.worst == []


@given(st.integers(0, 400), st.integers(0, 400))
def test_an_interval_holds_its_share(count: int, more: int) -> None:
    found = Proportion(count=count, n=count + more)
    if not found.n:
        assert found.value is None
        assert found.interval is None
        return
    low, high = found.interval  # type: ignore[misc]
    assert 0 <= low <= found.value + 1e-12  # type: ignore[operator]
    assert found.value - 1e-12 <= high <= 1  # type: ignore[operator]
    assert high - low < 1


@given(st.lists(st.floats(1e-4, 500), max_size=60))
def test_a_histogram_counts_everything_in_round_steps(seconds: list[float]) -> None:
    edges, counts = histogram(seconds)
    assert sum(counts) == len(seconds)
    assert edges == sorted(edges)
    assert len(counts) <= 21
    if seconds:
        assert len(edges) == len(counts) + 1


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0%"), (1, "100%"), (0.001, "<1%"), (0.999, ">99%"), (0.5, "50%"), (None, "–")]
)
def test_what_is_not_nothing_is_not_shown_as_nothing(value: float | None, said: str) -> None:
    assert percent(value) == said


# -- excerpts ---------------------------------------------------------------------------------------------

line_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\n[]"), min_size=1, max_size=700
).filter(lambda s: s.strip())


@settings(max_examples=60)
@given(st.data())
def test_an_excerpt_is_of_the_record_and_bounded(data: st.DataObject) -> None:
    items = data.draw(st.lists(line_text, min_size=1, max_size=12))
    cues = "[posted]\n" + "\n".join(f"- {item}" for item in items)
    ends = st.integers(0, len(cues) + 5)
    spans = [
        Span(min(a, b), max(a, b), kind)
        for a, b, kind in data.draw(
            st.lists(st.tuples(ends, ends, st.sampled_from(["winner", "other"])), max_size=4)
        )
    ]
    lines = excerpt(cues, spans)
    shown = [line for line in lines if not line.left_out]
    assert len(shown) + sum(line.left_out for line in lines) == len(items)
    assert 1 <= len(shown) <= 7
    assert sum(len(s.text) for line in shown for s in line.segments) < 7 * 700
    for line in shown:
        for piece in line.segments:
            words = piece.text.strip().strip("…").strip()
            assert words in cues
    marked = "".join(s.text for line in shown for s in line.segments if s.kind)
    assert all(c in cues for c in marked)


def test_evidence_is_marked_where_it_stands_and_the_winner_goes_first() -> None:
    cues = "[watched]\n- one\n- two three four\n[self_reported]\n- gender: Male"
    start = cues.index("three")
    found = excerpt(cues, [Span(start, start + 10, "other"), Span(start, start + 5, "winner")])
    assert [line.source for line in found] == ["watched", "", "self_reported"]
    assert [(s.text, s.kind) for s in found[1].segments] == [
        ("two ", ""), ("three", "winner"), (" four", "other"),
    ]  # fmt: skip


def test_long_lines_are_cut_around_their_evidence_and_no_emoji_is_torn() -> None:
    family = "👩‍👩‍👧" * 200
    cues = f"[posted]\n- {family} needle {family}"
    start = cues.index("needle")
    [line] = excerpt(cues, [Span(start, start + 6, "winner")])
    shown = "".join(s.text for s in line.segments)
    assert len(shown) < 300
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert "needle" in shown
    rest = shown.replace("… ", "").replace(" …", "").replace(" needle ", "")
    assert rest.replace("👩‍👩‍👧", "") == ""


# -- matrices ---------------------------------------------------------------------------------------------


def test_a_matrix_of_occupations_names_all_of_them() -> None:
    taxonomy = load_taxonomy()
    tags = list(taxonomy["occupation"].names[:-1])
    counts = [[(7 * i + 3 * j) % 40 for j in range(len(tags) + 1)] for i in range(len(tags))]
    found = Confusion(rows=tags, columns=[*tags, "NA"], counts=counts, unseen=[], frequent=[])
    wide = ElementTree.fromstring(matrix.wide(found, "occupation"))
    narrow = ElementTree.fromstring(matrix.narrow(found, "occupation"))
    hints = {title.text for title in narrow.iter("title")}
    assert set(tags) <= hints
    texts = [(e.text or "").replace("\u00a0", " ") for e in wide.iter("text")]
    assert sum(t.isdigit() for t in texts) == sum(c > 0 for row in counts for c in row)
    names = " ".join(texts)  # a long one stands on two lines
    for tag, row in zip(tags, counts, strict=True):
        assert f"{tag} ({sum(row):,})" in names
    numbers = [e.text for e in narrow.iter("text") if (e.text or "").isdigit()]
    assert numbers == 2 * [str(i + 1) for i in range(len(tags))]


# -- edges ------------------------------------------------------------------------------------------------


def test_without_gold_the_page_says_what_to_add(store: TraceStore) -> None:
    page = render_report(build_report(store))
    assert "--gold gold.jsonl" in page
    assert "Confident and wrong" not in page
    assert "Most contested" in page
    assert "Reliability" not in page
    Seen(page)


def test_without_records_no_word_and_no_id_is_in_the_page(store: TraceStore) -> None:
    page = render_report(build_report(store, gold=GOLD, records=False))
    assert "no text and no id of a user is in this file" in page
    assert "user-0" not in page
    for theme in THEMES:
        assert theme not in page
    assert "alert(" not in page
    Seen(page)


def test_a_run_in_which_everything_failed_still_has_a_report(tmp_path: Path) -> None:
    backend = ScriptedBackend(lambda _: BackendError("gone", ErrorType.TIMEOUT))
    with TraceStore(tmp_path / "t.db") as store:
        Profiler(backend=backend, store=store, samples=3, taxonomy=PETS).profile_many([RECORD])
        found = build_report(store, gold={"u1": {"pet": "Cat", "home": "NA"}})
    assert [a.fates["failed"] for a in found.coverage] == [1, 1]
    assert found.errors.errors == [("timeout", 3, True)]
    page = render_report(found)
    Seen(page)
    assert "asks again" in page


def test_a_tiny_run_with_odd_tags_and_ids(tmp_path: Path) -> None:
    odd = Taxonomy(
        name='odd "pets" & co',
        attributes=[
            Attribute(name="pet", tags=[Tag(name="Cat \"the\" & 'only'"), Tag(name="狗"), Tag(name="كلب")]),
            Attribute(name="home", tags=[Tag(name="Flat"), Tag(name="House")]),
        ],
    )
    texts = [answer(pet="狗"), answer(pet="كلب", home="House"), "no answer at all", answer(pet="Horse")]
    backend = ScriptedBackend(lambda i: texts[i % 4])
    user = '"><img src=x onerror=alert(1)> \u202eabc'
    with TraceStore(tmp_path / "t.db") as store:
        profiler = Profiler(backend=backend, store=store, samples=4, taxonomy=odd, min_survivors=1)
        profiler.profile_many([{**RECORD, "user_id": user}])
        found = build_report(store, gold={user: {"pet": "Cat \"the\" & 'only'"}})
    assert found.run.calibrator == UNCALIBRATED
    page = render_report(found)
    seen = Seen(page)
    assert "img" not in seen.tags
    assert user in seen.texts
    assert {"malformed", "ok"} <= set(found.errors.outcomes) or len(found.errors.outcomes) > 1
    figures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert all(ElementTree.fromstring(figure).tag == "svg" for figure in figures)


def test_open_attributes_show_their_values_and_are_not_judged(tmp_path: Path) -> None:
    mixed = Taxonomy(
        name="mixed",
        attributes=[PETS["pet"], Attribute(name="home", open=True, tags=[])],
    )
    texts = [answer(home="a small flat"), answer(home="small flat"), answer(home="farm by the sea")]
    backend = ScriptedBackend(lambda i: texts[i % 3])
    with TraceStore(tmp_path / "t.db") as store:
        Profiler(backend=backend, store=store, samples=3, taxonomy=mixed).profile_many([RECORD])
        gold: Gold = {"u1": {"pet": "Cat", "home": "house"}}
        found = build_report(store, gold=gold)
        bare = render_report(build_report(store, gold=gold, records=False))
    assert found.quality is not None
    assert [a.attribute for a in found.quality.attributes] == ["pet"]
    assert found.coverage[1].said.count == 1
    assert "flat" in found.coverage[1].tags[0].tag
    assert "flat" in render_report(found)
    assert "flat" not in bare


def test_what_cannot_be_reported_is_said_in_a_sentence(tmp_path: Path, store: TraceStore) -> None:
    with pytest.raises(StoreError, match="no run 'second'"):
        build_report(store, "second")
    with pytest.raises(InputError, match="no user in common"):
        build_report(store, gold={"nobody": {"gender": "Male"}})
    with pytest.raises(InputError, match="no attribute of the taxonomy profilebench that has tags"):
        build_report(store, gold={"user-001": {"shoe_size": "42"}})
    with pytest.raises(InputError, match="'Horse' is not a tag of 'gender'"):
        build_report(store, gold={"user-001": {"gender": "Horse"}})
    with pytest.raises(InputError, match="has no attribute 'gender'"):
        build_report(store, taxonomy=PETS)
    with TraceStore(tmp_path / "t.db") as empty:
        with pytest.raises(StoreError, match="holds no run"):
            build_report(empty)
        backend = ScriptedBackend(lambda _: BackendError("no", ErrorType.AUTH))
        with pytest.raises(BackendError):
            Profiler(backend=backend, store=empty, samples=2, taxonomy=PETS).profile_many([RECORD])
        with pytest.raises(InputError, match="no finished profile yet"):
            build_report(empty)


def test_without_jinja2_the_extra_is_named(report: RunReport, monkeypatch: pytest.MonkeyPatch) -> None:
    from cp_agents.report import render

    render._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"\[report\]"):
        render_report(report)


# -- the command ------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    if isinstance(result.exception, CpAgentsError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_report_on_the_command_line(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"user_id": user, "inferable": truth} for user, truth in GOLD.items()]
    Path("gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gold = ["--gold", "gold.jsonl", "--truth-field", "inferable"]
    code, said = run("--store", str(path), *gold, "--taxonomy", "profilebench")
    assert code == 0
    assert "report of run first (90 users, with gold) written to report.html" in said
    assert "Confident and wrong" in Path("report.html").read_text(encoding="utf-8")
    assert run("first", "--store", str(path), "--out", "b.html", "--no-records")[0] == 0
    assert "user-0" not in Path("b.html").read_text(encoding="utf-8")
    assert run("second", "--store", str(path))[0] == 2
    assert run("--store", "none.db") == (2, "no trace store at none.db")
    assert run("--store", str(path), "--out", str(path))[0] == 2
    assert run("--store", str(path), "--gold", "gold.jsonl", "--out", "gold.jsonl")[0] == 2
    assert run("--store", str(path), "--gold", "gold.jsonl", "--out", "c.html")[0] == 2
    assert not Path("c.html").exists()


def test_the_report_of_a_published_data_set(shared_data: Path, tmp_path: Path) -> None:
    """Its size hangs on the taxonomy and the records shown, hardly on the number of users."""
    from cp_agents.evaluation.loading import load_gold

    lines = (shared_data / "atus" / "users.jsonl").read_text(encoding="utf-8").splitlines()
    with TraceStore(tmp_path / "t.db") as store:
        Profiler(store=store, samples=3).profile_many(map(json.loads, lines[:150]))
        found = build_report(store, gold=load_gold(shared_data / "atus" / "gold.jsonl"))
    page = render_report(found)
    assert found.run.profiled == 150
    assert len(found.worst) == len(found.contested) == 12
    assert len(page.encode()) < 600_000
    Seen(page)


def test_a_case_is_plain_json(report: RunReport) -> None:
    again = RunReport.model_validate_json(report.model_dump_json())
    assert again == report
    assert isinstance(again.worst[0], Case)
