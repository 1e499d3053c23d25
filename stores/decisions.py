"""What was decided from samples: votes, profiles, and the calibrators that spoke."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from cp_agents.errors import StoreError
from cp_agents.schema import Profile
from cp_agents.stores.database import StoreFile
from cp_agents.stores.rows import Row, VoteRow, now


class DecisionTables(StoreFile):
    """Votes, profiles and calibrators."""

    def put_profile(self, record_id: int, votes: Iterable[VoteRow], profile: Profile) -> None:
        """Store what was decided of a record, over what was decided before. Reviews are kept elsewhere."""
        self.put_profiles([(record_id, votes, profile)])

    def put_profiles(self, decided: Iterable[tuple[int, Iterable[VoteRow], Profile]]) -> None:
        """Like `put_profile`, many records in one transaction."""
        stamp = now()
        with self.transaction() as conn:
            for record_id, votes, profile in decided:
                conn.executemany(
                    "insert or replace into votes values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [(record_id, *vote) for vote in votes],
                )
                body = json.dumps(profile.to_json()["profile"], ensure_ascii=False, separators=(",", ":"))
                conn.execute(
                    "insert or replace into profiles values (?, ?, ?, ?)",
                    (record_id, profile.calibrator, body, stamp),
                )

    def profiles(self, run_id: str) -> Iterator[tuple[int, Profile]]:
        """`(record_id, profile)` of every finished record of a run, in order of arrival."""
        found = self.rows(
            "select r.record_id, r.user_id, p.calibrator, p.profile from profiles p join records r using (record_id)"
            " where r.run_id = ? order by r.record_id",
            (run_id,),
        )
        for record_id, user_id, calibrator, body in found:
            yield (
                record_id,
                Profile(user_id=user_id, attributes=json.loads(body), calibrator=calibrator, run_id=run_id),
            )

    def profile(self, record_id: int) -> Profile | None:
        """One record's stored profile."""
        found = self.rows(
            "select r.run_id, r.user_id, p.calibrator, p.profile from profiles p join records r using (record_id)"
            " where record_id = ?",
            (record_id,),
        )
        if not found:
            return None
        run_id, user_id, calibrator, body = found[0]
        return Profile(user_id=user_id, attributes=json.loads(body), calibrator=calibrator, run_id=run_id)

    def put_calibrator(self, calibrator_id: str, kind: str, body: Row, run_id: str | None) -> None:
        """Keep a calibrator (its JSON form) under its content id."""
        with self.transaction() as conn:
            conn.execute(
                "insert or ignore into calibrators values (?, ?, ?, ?, ?)",
                (calibrator_id, kind, run_id, json.dumps(body), now()),
            )

    def calibrator(self, calibrator_id: str) -> dict[str, Any]:
        """A stored calibrator's JSON form."""
        found = self.rows("select calibrator from calibrators where calibrator_id = ?", (calibrator_id,))
        if not found:
            raise StoreError(f"no calibrator {calibrator_id!r} in the store {self.path}")
        return dict(json.loads(found[0][0]))
