"""What a report says: plain numbers and texts, gathered from a store, before anything is drawn.

`gather.build_report` makes a `RunReport`, `render.render_report` the page. Ratios are 0..1, confidences 1..5, times
seconds. Where there is no gold, `quality` is None and nothing else changes.
"""

from __future__ import annotations

from cp_agents.report.model_records import Case, ReviewQueue
from cp_agents.report.numbers import Estimate, Plain, Proportion


class RunSummary(Plain):
    """What was run, and how."""

    run_id: str
    backend: str
    endpoint: str
    model: str
    revision: str
    prompt_version: str
    taxonomy: str
    taxonomy_hash: str
    samples: int
    """M."""
    adaptive: str | None
    asked_per_record: float | None
    """Mean samples asked for, where sampling was adaptive."""
    vote: str
    confidence: str
    calibrator: str
    """Its label; "uncalibrated" where none spoke, "several" where the profiles name more than one."""
    tau: dict[str, float]
    review_rules: dict[str, str]
    """The rules that are on, and their settings."""
    created_at: str
    finished_at: str | None
    records: int
    profiled: int
    """Records with a profile; the others have not been finished."""


FATES = ("answered", "reviewed", "waiting", "below_tau", "voted_na", "failed")
"""What became of an attribute of a profiled record, in the order in which bars show it."""


class TagCount(Plain):
    """How often a tag is said, and how often gold has it."""

    tag: str
    said: int
    gold: int | None


class AttributeCoverage(Plain):
    """What the profiles say on one attribute."""

    attribute: str
    tau: float
    n: int
    """Profiled records."""
    fates: dict[str, int]
    """Records by `FATES`."""
    tags: list[TagCount]
    """Of what is said (answered, waiting or reviewed, NA apart), in taxonomy order."""
    gold_n: int | None
    """Users of the run whose gold is a tag."""
    evidence: dict[str, int]
    """Voted tags by how their evidence was found: exact, normalised, fuzzy, ungrounded, none."""

    @property
    def said(self) -> Proportion:
        """Records that got a tag."""
        return Proportion(count=sum(t.said for t in self.tags), n=self.n)


class TauPoint(Plain):
    """One attribute at one tau."""

    tau: float
    accuracy: Proportion
    """Selective accuracy: correct / answered."""
    coverage: Proportion
    """Answered / labelled."""
    recall: Proportion
    """True recall: correct / labelled."""
    macro_f1: float | None
    paper_f1: float | None


class ReliabilityBin(Plain):
    """Votes whose confidence is in one tenth of 0..1."""

    mean: float
    """Their mean confidence."""
    accuracy: Proportion


class Reliability(Plain):
    """Does a confidence of x mean right in a share x of cases? Over all votes for a tag, whatever tau."""

    source: str
    """Which confidence: probability, combined or agreement, see `cp_agents.evaluation.confidence`."""
    n: int
    bins: list[ReliabilityBin]
    ece: float
    auroc: float | None
    levels: list[Proportion]
    """Right votes at calibrated level 1..5."""


class Confusion(Plain):
    """Gold against what the profile says, over the tags that gold or the profiles name."""

    rows: list[str]
    """Gold tags, NA last where it occurs."""
    columns: list[str]
    """Said tags: the same, NA always last."""
    counts: list[list[int]]
    unseen: list[str]
    """Tags that neither gold nor the profiles name."""
    frequent: list[tuple[str, str, int]]
    """Most frequent mistakes: gold, said, count."""


class AttributeQuality(Plain):
    """One attribute beside gold."""

    attribute: str
    n_labelled: int
    n_gold_na: int
    answered_where_gold_na: int
    """At the run's own tau."""
    constant_tag: str | None
    """The most frequent gold tag."""
    constant_accuracy: float | None
    constant_macro_f1: float | None
    at_tau: list[TauPoint]
    """Tau 1..5."""
    own: TauPoint
    """At the tau of the run."""
    macro_f1: Estimate
    """At the tau of the run."""
    reliability: Reliability | None
    """None where no labelled user got a vote for a tag."""
    confusion: Confusion


class Averages(Plain):
    """Means over the attributes at the run's own tau."""

    selective_accuracy: Estimate
    coverage: Estimate
    true_recall: Estimate
    macro_f1: Estimate
    paper_f1_mean: Estimate
    paper_f1_of_means: Estimate
    constant_macro_f1: float | None


class Quality(Plain):
    """Everything that needs gold."""

    users: int
    """Users of the run that gold speaks of."""
    not_in_run: int
    """Users of gold that the run does not have."""
    not_in_gold: int
    not_evaluated: list[str]
    """Attributes of gold that the taxonomy lacks."""
    attributes: list[AttributeQuality]
    averages: Averages


class ConfidenceShape(Plain):
    """One attribute's confidence before and after calibration, over its votes for a tag."""

    attribute: str
    n: int
    before: list[int]
    """Votes by S / M in twenty steps of 1/4 over 0..5, the upper end of each counted in."""
    rounded: list[int]
    """Votes at level 1..5 by S / M rounded, which is the confidence without a calibrator."""
    after: list[int]
    """Votes at level 1..5 as the profiles have it."""
    cuts: list[float]
    """S / M at which the calibrator's levels 2..5 begin, as far as they are reached."""
    calibrated: bool


class VoteSplit(Plain):
    """One attribute's share of the surviving samples that named the winner, in ten steps over 0..1."""

    attribute: str
    n: int
    """Votes, those for NA too; attributes that failed are left out."""
    unanimous: int
    kinds: dict[str, list[int]]
    """By "right" and "wrong" where gold tells, "tag" where it does not, and "NA"."""


class CallStats(Plain):
    """Samples, tokens, money and time."""

    samples: int
    reused: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    tokens_estimated: bool
    cost_usd: float | None
    unpriced: int
    cost_per_record: float | None
    cost_per_answer: float | None
    wall_s: float | None
    samples_per_s: float | None
    pace_basis: str
    latency_n: int
    """Samples drawn without an error whose latency is known."""
    latency: dict[str, float]
    """Seconds at p10, p50, p90, p99 and max; empty where none is known."""
    latency_edges: list[float]
    latency_counts: list[int]
    cue_tokens: dict[str, float]
    """Estimated tokens of the cue blocks at p10, p50, p90 and max."""


class ErrorStats(Plain):
    """What went wrong with samples and answers."""

    outcomes: dict[str, int]
    """Samples by outcome."""
    by_attribute: dict[str, dict[str, int]]
    """Answers by attribute and outcome."""
    errors: list[tuple[str, int, bool]]
    """Failed samples by type, and whether a resumed run asks again."""


class RunReport(Plain):
    """A whole report."""

    version: str
    """Of cp-agents."""
    store: str
    """File name of the store, for the commands that the page names."""
    run: RunSummary
    coverage: list[AttributeCoverage]
    quality: Quality | None
    shapes: list[ConfidenceShape]
    splits: list[VoteSplit]
    calls: CallStats
    errors: ErrorStats
    worst: list[Case]
    contested: list[Case]
    review: ReviewQueue
    with_records: bool
    """Whether words and ids of users are in the report."""
