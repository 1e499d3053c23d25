"""What a sample's answers are worth, given where their evidence stands in the record (`cue_index`)."""

from __future__ import annotations

from cp_agents.answer_fields import MAX_PIECES
from cp_agents.cue_index import CueIndex
from cp_agents.parsing import ParsedAnswer
from cp_agents.schema import NA, Match, Outcome, Prediction

__all__ = ["CueIndex", "ground"]


def ground(parsed: ParsedAnswer, index: CueIndex, *, cap: int | None = 2) -> dict[str, Prediction]:
    """The predictions of one sample: (A, C, E) of equation 2 for every attribute, with the evidence located.

    A tag other than NA for which no piece of evidence stands in the record, or none was given, has at most `cap` as
    its confidence; None for no cap. NA speaks of what is absent and is never capped.
    """
    predictions: dict[str, Prediction] = {}
    for name, answer in parsed.attributes.items():
        evidence = [e for piece in answer.evidence for e in index.cite(piece)]
        if len(evidence) > MAX_PIECES:
            evidence = sorted(evidence, key=lambda e: e.match is Match.UNGROUNDED)[:MAX_PIECES]
        confidence = answer.confidence
        if (
            cap is not None
            and confidence is not None
            and answer.outcome is Outcome.OK
            and answer.tag != NA
            and all(e.match is Match.UNGROUNDED for e in evidence)
        ):
            confidence = min(confidence, cap)
        predictions[name] = Prediction(
            outcome=answer.outcome, tag=answer.tag, confidence=confidence, evidence=evidence
        )
    return predictions
