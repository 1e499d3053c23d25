"""The samples of a store, what they say, and the cache that finds them again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from cp_agents.errors import ErrorType
from cp_agents.schema import Completion, Outcome, TagProbability
from cp_agents.stores.database import StoreFile
from cp_agents.stores.rows import NewSample, StoredSample, completion_of, now, pack_evidence


class SampleTables(StoreFile):
    """Samples, predictions and cache."""

    def samples(self, record_id: int) -> dict[int, StoredSample]:
        """The record's stored samples by index."""
        found = self.rows(
            "select sample_id, sample_index, outcome, error_type from samples where record_id = ?",
            (record_id,),
        )
        return {
            index: StoredSample(sample_id, index, Outcome(outcome), ErrorType(error) if error else None)
            for sample_id, index, outcome, error in found
        }

    def add_samples(
        self, record_id: int, prompt_hash: str, samples: Iterable[NewSample]
    ) -> list[StoredSample]:
        """Commit samples with their predictions, all in one transaction; each replaces one of the same index.

        A sample without an error is also entered in the cache under its key.
        """
        stamp = now()
        stored, keys = [], []
        with self.transaction() as conn:
            known = dict(
                conn.execute("select sample_index, sample_id from samples where record_id = ?", (record_id,))
            )
            for sample in samples:
                completion, usage = sample.completion, sample.completion.usage
                if (old := known.get(completion.index)) is not None:
                    for table in ("cache", "predictions", "samples"):
                        conn.execute(f"delete from {table} where sample_id = ?", (old,))
                error = completion.error_type
                sample_id = conn.execute(
                    "insert into samples (record_id, sample_index, sampler, prompt_hash, outcome, finish_reason,"
                    " error_type, error_message, text, reasoning, prompt_tokens, completion_tokens, cached_tokens,"
                    " reasoning_tokens, usage_estimated, latency_s, cost_usd, from_cache, created_at)"
                    " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        record_id,
                        completion.index,
                        completion.sampler,
                        prompt_hash,
                        sample.outcome.value,
                        completion.finish_reason,
                        error.value if error else None,
                        completion.error_message,
                        completion.text,
                        completion.reasoning or None,
                        usage.prompt_tokens or None,
                        usage.completion_tokens or None,
                        usage.cached_tokens or None,
                        usage.reasoning_tokens or None,
                        1 if usage.estimated else None,
                        round(completion.latency_s, 4),
                        completion.cost_usd,
                        sample.from_cache,
                        stamp,
                    ),
                ).lastrowid
                assert sample_id is not None
                conn.executemany(
                    "insert into predictions (sample_id, attribute, outcome, tag, confidence, evidence, probability)"
                    " values (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            sample_id,
                            name,
                            p.outcome.value,
                            p.tag,
                            p.confidence,
                            pack_evidence(p.evidence),
                            p.probability,
                        )
                        for name, p in sample.predictions.items()
                    ],
                )
                known[completion.index] = sample_id
                if sample.cache_key is not None and error is None:
                    keys.append((sample.cache_key, sample_id))
                stored.append(StoredSample(sample_id, completion.index, sample.outcome, error))
            # The later one: an answer is drawn again where the earlier one lacks its probabilities.
            conn.executemany("insert or replace into cache (key, sample_id) values (?, ?)", keys)
        return stored

    def cached(self, keys: Sequence[str]) -> dict[str, tuple[int, Completion]]:
        """Stored answers by cache key: `(sample_id, completion)`; indices are the stored ones."""
        marks = ",".join("?" * len(keys))
        found = self.query(
            f"select c.key, s.* from cache c join samples s using (sample_id) where c.key in ({marks})",
            list(keys),
        )
        if not found:
            return {}
        marks = ",".join("?" * len(found))
        scored = self.scored_tags(f"sample_id in ({marks})", [row["sample_id"] for row in found])
        return {row["key"]: (row["sample_id"], completion_of(row, scored)) for row in found}

    def scored_tags(self, where: str, parameters: Sequence[Any] = ()) -> dict[int, dict[str, TagProbability]]:
        """By sample and attribute, the tags whose probability was stored; `where` is about samples and records."""
        scored: dict[int, dict[str, TagProbability]] = {}
        for sample_id, attribute, tag, probability in self.rows(
            "select sample_id, attribute, tag, probability"
            " from records join samples using (record_id) join predictions p using (sample_id)"
            f" where {where} and p.outcome = 'ok' and probability is not null",
            parameters,
        ):
            scored.setdefault(sample_id, {})[attribute] = TagProbability(tag, probability)
        return scored

    def predictions(self, record_id: int) -> list[tuple[int, str, str, str, int]]:
        """`(sample_index, sampler, attribute, tag, confidence)` of a record's usable answers."""
        return self.rows(
            "select s.sample_index, s.sampler, p.attribute, p.tag, p.confidence"
            " from samples s join predictions p using (sample_id) where s.record_id = ? and p.outcome = 'ok'",
            (record_id,),
        )

    def probabilities(self, record_id: int) -> dict[tuple[int, str], float]:
        """By `(sample_index, attribute)`, what the model gave the tags of a record's usable answers; where known."""
        found = self.rows(
            "select s.sample_index, p.attribute, p.probability from samples s join predictions p using (sample_id)"
            " where s.record_id = ? and p.outcome = 'ok' and p.probability is not null",
            (record_id,),
        )
        return {(index, attribute): probability for index, attribute, probability in found}

    def evidence(self, wanted: Iterable[tuple[int, int, str]]) -> list[str | None]:
        """Packed evidence for each `(record_id, sample_index, attribute)`, None where there is none."""
        found = self.rows(
            "select p.evidence from json_each(?) w"
            " left join samples s on s.record_id = w.value ->> 0 and s.sample_index = w.value ->> 1"
            " left join predictions p on p.sample_id = s.sample_id and p.attribute = w.value ->> 2"
            " order by w.key",
            (json.dumps(list(wanted)),),
        )
        return [row[0] for row in found]
