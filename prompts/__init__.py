"""Prompt templates as files, and the one renderer for teacher, SFT, GRPO and serving."""
