"""The schema as numbered migrations, applied in order when a store is opened.

A store that has a migration which this code does not know was written by a newer version and is refused.
"""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database, Migrations

from cp_agents.errors import StoreError

SET_NAME = "cp_agents"
migrations = Migrations(SET_NAME)


def migrate(db: Database, path: str) -> None:
    """Bring `db` to this version's schema. Raises `StoreError` for a store of a newer version."""
    _refuse_what_is_not_ours(db, path)
    if migrations.pending(db):
        # Two processes may open a new store at once: the second waits here, and then finds nothing left to do.
        db.conn.execute("begin immediate")
        with db.conn:
            migrations.apply(db)


def _refuse_what_is_not_ours(db: Database, path: str) -> None:
    if db[Migrations.migrations_table].exists():
        rows = db.query(
            f"select name from {Migrations.migrations_table} where migration_set = ? order by name",
            [SET_NAME],
        )
        applied = {row["name"] for row in rows}
        ours = {
            m.name for m in migrations.pending(Database(memory=True))
        }  # to an empty database, all of them
        if newer := sorted(applied - ours):
            raise StoreError(
                f"the store {path} was written by a newer version of cp-agents (it has {newer[-1]!r}); "
                "upgrade cp-agents or use another store"
            )
    elif foreign := set(db.table_names()) & {"runs", "samples", "profiles"}:
        raise StoreError(
            f"{path} has a table {sorted(foreign)[0]!r} and is no cp-agents store; choose another file"
        )


def run_statements(db: Database, script: str) -> None:
    """Run a script inside the open transaction, which `executescript` would commit."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.conn.execute(statement)
            statement = ""


@migrations()
def m001_traces(db: Database) -> None:
    """Runs, records, samples, predictions, votes, profiles, calibrators, reviews, cache."""
    run_statements(
        db,
        """
        create table runs (
            run_id text primary key,
            name text not null,
            fingerprint text not null,     -- hash of all that decides what is sampled
            backend text not null,         -- the spec the user gave
            endpoint text not null,
            model text not null,
            revision text not null,
            taxonomy text not null,
            taxonomy_hash text not null,
            prompt_version text not null,
            samples integer not null,      -- M
            settings text not null,        -- JSON
            calibrator_id text,            -- the one that spoke last
            created_at text not null,
            finished_at text,
            unique (name, fingerprint)
        );
        create table records (
            record_id integer primary key,
            run_id text not null references runs (run_id),
            user_id text not null,
            cues text not null,            -- the anonymised cue block, as it stands in the prompt
            tokens integer not null,       -- estimated, of the cue block
            self_reported text not null,   -- JSON, anonymised
            dropped text not null,         -- JSON: what cue assembly left out, by kind
            thread_id text,                -- LangGraph thread, where the graph ran with a checkpointer
            created_at text not null,
            unique (run_id, user_id)
        );
        create index records_user on records (user_id);
        create table samples (
            sample_id integer primary key,
            record_id integer not null references records (record_id),
            sample_index integer not null,
            sampler text not null,
            prompt_hash text not null,
            outcome text not null,
            finish_reason text,
            error_type text,
            error_message text,
            text text not null,
            reasoning text,
            prompt_tokens integer,
            completion_tokens integer,
            cached_tokens integer,
            reasoning_tokens integer,
            usage_estimated integer,
            latency_s real,
            cost_usd real,
            from_cache integer,            -- sample_id of the call that was reused, no call was made
            created_at text not null,
            unique (record_id, sample_index)
        );
        create table predictions (
            sample_id integer not null references samples (sample_id),
            attribute text not null,
            outcome text not null,
            tag text,
            confidence integer,
            evidence text,                 -- JSON: [[start, end, match], ["ungrounded words"], ...], offsets in cues
            primary key (sample_id, attribute)
        ) without rowid;
        create table votes (
            record_id integer not null references records (record_id),
            attribute text not null,
            method text not null,
            tag text,
            score real,                    -- S of equation 5
            share real,
            runner_up text,
            margin real,
            survivors integer,
            primary key (record_id, attribute)
        ) without rowid;
        create table profiles (
            record_id integer primary key references records (record_id),
            calibrator text not null,
            profile text not null,         -- JSON, as in OUT.jsonl
            finished_at text not null
        );
        create table calibrators (
            calibrator_id text primary key,
            kind text not null,
            run_id text,
            calibrator text not null,      -- JSON
            created_at text not null
        );
        create table reviews (
            review_id integer primary key,
            record_id integer not null references records (record_id),
            attribute text not null,
            reasons text not null,         -- JSON list
            proposed text,                 -- the model's tag
            confidence integer,
            created_at text not null,
            tag text,                      -- the person's answer; null while it waits
            reviewer text,
            note text,
            reviewed_at text
        );
        create index reviews_record on reviews (record_id, attribute);
        create table cache (
            key text primary key,          -- endpoint + model + revision + request + sample index
            sample_id integer not null references samples (sample_id)
        ) without rowid;
        create view profile_attributes as
            select r.run_id, r.user_id, a.key as attribute, a.value ->> 'tag' as tag,
                   a.value ->> 'confidence' as confidence, a.value ->> 'status' as status,
                   a.value ->> 'score' as score, a.value ->> 'vote_share' as vote_share
            from profiles p join records r using (record_id), json_each(p.profile) a;
        """,
    )


@migrations()
def m002_batches(db: Database) -> None:
    """Batches that were handed to a provider's batch API or written to a file, and what each asks for."""
    run_statements(
        db,
        """
        create table batches (
            batch_key text primary key,    -- ours; sent along, so that a batch is found whose id was not noted
            run_id text not null references runs (run_id),
            batch_id text,                 -- the endpoint's; null while it is being submitted, and for files
            status text not null,          -- submitting, written, lost, or as the endpoint says
            requests integer not null,
            language text,                 -- of the prompt, or its folder of templates; for files
            created_at text not null,
            closed_at text                 -- when its results were stored, or when it was clear that it has none
        );
        create index batches_run on batches (run_id);
        create table batch_requests (
            custom_id text not null,       -- hash of run, record, request and sample indices
            batch_key text not null references batches (batch_key),
            record_id integer not null references records (record_id),
            first_index integer not null,  -- of the samples that it asks for
            samples integer not null,
            primary key (custom_id, batch_key)
        ) without rowid;
        create index batch_requests_batch on batch_requests (batch_key);
        create index batch_requests_record on batch_requests (record_id);
        create trigger records_forget_requests after delete on records begin
            delete from batch_requests where record_id = old.record_id;
        end;
        """,
    )


@migrations()
def m003_record_threads(db: Database) -> None:
    """Every LangGraph thread that ever saw a record, so that `forget` finds all of its checkpoints."""
    run_statements(
        db,
        """
        create table record_threads (
            record_id integer not null references records (record_id),
            thread_id text not null,
            primary key (record_id, thread_id)
        ) without rowid;
        create index record_threads_thread on record_threads (thread_id);
        insert into record_threads select record_id, thread_id from records where thread_id is not null;
        create trigger records_forget_threads after delete on records begin
            delete from record_threads where record_id = old.record_id;
        end;
        """,
    )


@migrations()
def m004_sampling(db: Database) -> None:
    """How many samples adaptive sampling asked for and why it stopped; what the model itself gave each tag."""
    run_statements(
        db,
        """
        alter table records add column asked integer;      -- samples asked for; null: all M, as the run says
        alter table records add column stop_reason text;   -- why no more were: see cp_agents.adaptive; null: all M
        alter table predictions add column probability real; -- of the tag among the attribute's, by its tokens
        """,
    )


@migrations()
def m005_students(db: Database) -> None:
    """Models that were trained from the traces, and what they may be used with."""
    run_statements(
        db,
        """
        create table students (
            student_id text primary key,   -- 12 hex digits over name, base, weights, prompt and taxonomy
            name text not null,
            base text not null,            -- the model that it was trained from, as a backend names it
            kind text not null,            -- full or adapter
            path text not null,            -- folder of the weights or of the adapter
            weights_hash text not null,
            language text not null,        -- of the prompt, or its folder of templates
            prompt_version text not null,
            taxonomy text not null,        -- JSON
            taxonomy_hash text not null,
            calibrator_id text,
            source_run text,               -- the teacher's run that it learned from
            training text not null,        -- JSON: stage, run folder, settings
            metrics text not null,         -- JSON, measured
            created_at text not null,
            promoted_at text               -- the newest promoted student of a name is the one that serves
        );
        create index students_name on students (name);
        """,
    )


@migrations()
def m006_endpoints(db: Database) -> None:
    """What endpoints were found to be able to do, see `cp_agents.stores.endpoints`."""
    run_statements(
        db,
        """
        create table endpoints (
            endpoint text not null,        -- base URL
            sampler text not null,         -- kind:model
            capabilities text not null,    -- JSON
            checked_at text not null,
            primary key (endpoint, sampler)
        ) without rowid;
        """,
    )


@migrations()
def m007_selections(db: Database) -> None:
    """What a teacher chose from the parts of long histories, see `cp_agents.selection`."""
    run_statements(
        db,
        """
        create table selections (
            key text primary key,          -- endpoint, model, revision and request, as in cache
            user_id text not null,
            kept text not null,            -- JSON: numbers of the lines that were chosen
            prompt_tokens integer,
            completion_tokens integer,
            latency_s real,
            cost_usd real,
            created_at text not null
        ) without rowid;
        create index selections_user on selections (user_id);
        """,
    )
