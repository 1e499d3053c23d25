"""What each stage of `benchmarks.gpu_student` does, all by the project's own functions."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

from benchmarks.stages import Facts, Stages
from benchmarks.student_measures import mfu, on_gpu, parse_rate, read_users
from cp_agents.errors import InputError
from cp_agents.evaluation.loading import load_gold
from cp_agents.evaluation.metrics import evaluate
from cp_agents.files import whole_file, write_jsonl
from cp_agents.profiler import Profiler
from cp_agents.stores.students import register
from cp_agents.stores.traces import TraceStore

NO_RULES = {"confidence_rise": None, "na_rise": None, "na_most": None, "parse_least": None}
CONCURRENCY = 512
GPU_ROWS = 1024
WATCHED = ("reward_sum", "parse_rate", "na_rate", "majority_ratio", "tag_entropy", "confidence_mean", "kl")


class Bench:
    """The stages, as methods that give what they found."""

    def __init__(self, options: argparse.Namespace, stages: Stages) -> None:
        self.options, self.stages, self.out = options, stages, stages.out

    def work(self, name: str) -> Callable[[], Facts]:
        """What the stage of this name does."""
        o = self.options
        if name.startswith("eval-"):
            return partial(self.evaluate, name.removeprefix("eval-"))
        found: dict[str, Callable[[], Facts]] = {
            "teacher": self.teacher,
            "export": self.export,
            "filter": self.filter,
            "unpack": self.unpack,
            "sft": self.sft,
            "reference": self.reference,
            "base-reference": self.base_reference,
            "grpo": partial(self.grpo, "grpo", steps=o.grpo_steps, prompts=o.grpo_prompts),
            "grpo-self": partial(
                self.grpo, "grpo-self", steps=o.self_steps, prompts=o.grpo_prompts, weight="self"
            ),
            "grpo-no-sft": partial(
                self.grpo, "grpo-no-sft", steps=o.no_sft_steps, prompts=o.no_sft_prompts, trained=False
            ),
        }
        return found[name]

    # --- data, without a GPU --------------------------------------------------------------------------------------

    def _unlabelled(self) -> list[dict[str, Any]]:
        wanted = self.options.sft_users + self.options.rl_users
        found = read_users(self.options.data / "unlabelled.jsonl", wanted)
        if len(found) < wanted:
            raise InputError(f"unlabelled.jsonl has {len(found):,} users, and {wanted:,} are asked for")
        return found

    def teacher(self) -> Facts:
        """The lexicon's votes."""
        users = self._unlabelled()
        with Profiler(
            "lexicon", store=self.out / "teacher.db", run="teacher", samples=self.options.teacher_samples,
            seed=self.options.seed,
        ) as profiler:  # fmt: skip
            _, done = profiler.profile_many(users, concurrency=64)
        return {"users": done.done, "samples": self.options.teacher_samples, "failed": len(done.failed)}

    def export(self) -> Facts:
        """Votes of the SFT users as rows to train on."""
        from cp_agents.trainers.sft_data import export_sft

        users = {user["user_id"] for user in self._unlabelled()[: self.options.sft_users]}
        data = export_sft(
            self.out / "teacher.db", "teacher", self.out / "data", users=users, language="en-compact",
            evidence=self.options.evidence, seed=self.options.seed, validation=0.0,
        )  # fmt: skip
        return {"rows": data.card.files["train.jsonl"].rows, "dropped": data.card.dropped}

    def filter(self) -> Facts:
        """As many of the RL users as steps can take, by how sure the votes are of them."""
        from cp_agents.trainers.user_filter import filter_users

        o = self.options
        users = self._unlabelled()[o.sft_users :]
        most = max(
            max(o.grpo_steps, o.self_steps) * o.grpo_prompts, o.no_sft_steps * o.no_sft_prompts
        )  # each user once
        with TraceStore(self.out / "teacher.db", must_exist=True) as store:
            found = filter_users(
                store, "teacher", self.out / "rl_users.jsonl", users={user["user_id"] for user in users},
                shape=o.shape, rule="quintile", keep=min(most, len(users)), seed=o.seed,
            )  # fmt: skip
        kept = {user["user_id"] for user in read_users(self.out / "rl_users.jsonl")}
        write_jsonl(self.out / "rl_records.jsonl", [user for user in users if user["user_id"] in kept])
        return {"shape": o.shape, "before": found.before, "after": found.after, "users": len(kept)}

    # --- training -------------------------------------------------------------------------------------------------

    @property
    def base(self) -> str:
        """The model to begin with: as it was named, or as it was unpacked."""
        return str(self.out / "base") if self.stages.facts("unpack")["unpacked"] else self.options.model

    def unpack(self) -> Facts:
        """A GGUF file as a folder of plain weights: unpacking takes seconds, and five stages would each do it."""
        from cp_agents.trainers.base_model import find_base, load_base

        base = find_base(self.options.model)
        if base.files.gguf:
            model, tokenizer = load_base(base)
            shutil.rmtree(self.out / "base", ignore_errors=True)
            model.save_pretrained(self.out / "base")
            tokenizer.save_pretrained(self.out / "base")
        return {"unpacked": base.files.gguf is not None}

    def sft(self) -> Facts:
        """All weights, on the teacher's votes."""
        from cp_agents.trainers.base_model import find_base
        from cp_agents.trainers.memory import read_shape
        from cp_agents.trainers.run_folder import RunFolder
        from cp_agents.trainers.sft import train_sft
        from cp_agents.trainers.sft_config import sft_settings

        o = self.options
        settings = sft_settings(
            "paper", model=self.base, data=self.out / "data", out=self.out / "sft", seed=o.seed,
            learning_rate=o.sft_learning_rate, batch=o.sft_batch, epochs=o.sft_epochs, max_steps=o.sft_steps,
            packing=o.packing, gradient_checkpointing=False, eval_every=0, eval_users=0, save_every=50,
        )  # fmt: skip
        result = train_sft(settings, sys.stderr)
        rows = RunFolder(settings.out).rows()
        parameters = read_shape(find_base(self.base), rank=1, targets="all-linear").parameters
        # The first step pays for what is set up with it.
        timed = rows[1:] or rows
        tokens, seconds = sum(row["tokens"] for row in timed), sum(row["step_time"] for row in timed)
        return {
            "steps": result.steps,
            "batch": o.sft_batch,
            "loss": result.loss,
            "parameters": parameters,
            "tokens": sum(row["tokens"] for row in rows),
            "tokens_per_s": tokens / seconds,
            "mfu": mfu(parameters, tokens, seconds, o.peak_tflops) if on_gpu() else None,
            "peak_tflops": o.peak_tflops,
        }

    def reference(self) -> Facts:
        """C_ref of the SFT student."""
        from cp_agents.trainers.reference import load_reference, run_reference

        student = self.out / "sft" / "model"
        with TraceStore(self.out / "students.db") as store:
            run = run_reference(
                store, student, self.out / "rl_records.jsonl", run="reference", max_tokens=self.options.max_tokens,
                concurrency=CONCURRENCY, **self._rows(),
            )  # fmt: skip
            found = load_reference(store, run, student)
        return {"users": len(found), "c_ref": fmean(fmean(row["c_ref"].values()) for row in found)}

    def base_reference(self) -> Facts:
        """C_ref of the base model: what its own likeliest answers state."""
        o = self.options
        profiler = Profiler(
            f"transformers:{self.base}", store=self.out / "students.db", run="base-reference", samples=1,
            language=o.base_language, temperature=0.0, max_tokens=o.base_max_tokens, seed=o.seed, evidence_cap=None,
            extra=self._rows(),
        )  # fmt: skip
        users = read_users(self.out / "rl_records.jsonl")
        try:
            _, done = profiler.profile_many(users, concurrency=CONCURRENCY, calibrate=None)
            rate = parse_rate(profiler.store, profiler.run_id)
        finally:
            profiler.close()
        return {"users": done.done, "parse_rate": rate}

    def grpo(
        self, name: str, *, steps: int, prompts: int, weight: str = "reference", trained: bool = True
    ) -> Facts:
        """Reinforcement of the SFT student, or of the base model, by its own votes."""
        from cp_agents.trainers.grpo import train_grpo
        from cp_agents.trainers.grpo_config import grpo_settings
        from cp_agents.trainers.grpo_plan import plan_grpo
        from cp_agents.trainers.rewards import RewardSettings
        from cp_agents.trainers.run_folder import RunFolder
        from cp_agents.trainers.stop_rules import StopRules, find_collapse

        o = self.options
        per_step = prompts * o.grpo_rollouts
        settings = grpo_settings(
            "paper", model=str(self.out / "sft" / "model") if trained else self.base, store=self.out / "students.db",
            reference="reference" if trained else "base-reference", out=self.out / name,
            users=self.out / "rl_users.jsonl", language=None if trained else o.base_language, steps=steps,
            prompts=prompts, rollouts=o.grpo_rollouts, learning_rate=o.grpo_learning_rate,
            max_tokens=o.max_tokens if trained else o.base_max_tokens, gradient_checkpointing=False, save_every=5,
            rollout_backend=o.rollout_backend, seed=o.seed,
            generation_batch=None if o.generation_batch is None else min(o.generation_batch, per_step),
            reward=RewardSettings.model_validate({"weight": weight}), stop=StopRules.model_validate(NO_RULES),
        )  # fmt: skip
        result = train_grpo(settings, sys.stderr)
        rows = RunFolder(settings.out).rows()
        timed = rows[1:] or rows
        batch = plan_grpo(settings, check=False).batches.generation
        sampling = batch / fmean(row["rollout_time"] for row in timed)
        rules = StopRules()
        collapse = next(
            ((end, why) for end in range(1, len(rows) + 1) if (why := find_collapse(rows[:end], rules))), None
        )
        return {
            "steps": result.steps,
            "users_a_step": prompts,
            "rollouts": o.grpo_rollouts,
            "generation_batch": batch,
            "rollouts_by": o.rollout_backend,
            "step_s": fmean(row["step_time"] for row in timed),
            "rollouts_per_s": per_step / fmean(row["step_time"] for row in timed),
            "sampled_per_s": sampling,
            "sampled_tokens_per_s": sampling * fmean(row["completions/mean_length"] for row in timed),
            "first": {name: rows[0].get(name) for name in WATCHED},
            "last": {name: result.metrics.get(name) for name in WATCHED},
            "would_stop": None if collapse is None else f"step {collapse[0]}: {collapse[1]}",
        }

    # --- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, name: str) -> Facts:
        """Profile the gold users as the model of `name`, calibrated by its own votes, and compare."""
        o = self.options
        made: dict[str, Any] = {"samples": o.samples, "max_tokens": o.max_tokens}
        store = self.out / "students.db"
        if name == "teacher":
            spec, made = "lexicon", {"samples": o.teacher_samples}
        elif name == "base":
            spec = f"transformers:{self.base}"
            made |= {"language": o.base_language, "max_tokens": o.base_max_tokens, "extra": self._rows()}
        else:
            with TraceStore(store) as opened:
                spec = f"student:{name}@{register(opened, name, self.out / name / 'model')}"
            if name == "grpo-no-sft":
                made["max_tokens"] = o.base_max_tokens
            if rows := self._rows():
                spec += f"?max_rows={rows['max_rows']}"
        if name != "teacher" and not o.evidence:
            made["evidence_cap"] = (
                None  # or all confidences would be cut alike, for what nobody was taught to give
            )
        profiler = Profiler(spec, store=store, run=f"eval-{name}", seed=o.seed, **made)
        try:
            profiles, done = profiler.profile_many(
                read_users(o.data / "users.jsonl", o.eval_users), concurrency=CONCURRENCY
            )
            rate, language = parse_rate(profiler.store, profiler.run_id), profiler.prompt.language
        finally:
            profiler.close()
        gold = load_gold(o.data / "gold.jsonl")
        there = {profile.user_id for profile in profiles} | set(done.failed)
        found = evaluate(
            (profile.to_json() for profile in profiles),
            {user: truth for user, truth in gold.items() if user in there},
            profiler.taxonomy,
        )
        with whole_file(self.out / f"eval-{name}.json") as file:
            file.write(found.model_dump_json(indent=1) + "\n")
        seconds = max(done.seconds, 1e-9)
        return {
            "users": found.users,
            "samples": made["samples"],
            "prompt": language,
            "parse_rate": rate,
            "constant_macro_f1": found.best_constant_macro_f1,
            "at_tau": [average.model_dump() for average in found.average],
            "samples_per_s": done.meter.samples / seconds,
            "tokens_per_s": done.meter.completion_tokens / seconds,
        }

    def _rows(self) -> dict[str, Any]:
        rows = self.options.rows or (GPU_ROWS if on_gpu() else None)
        return {} if rows is None else {"max_rows": rows}
