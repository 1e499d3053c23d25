"""The student's card for trainers, which write it: see `cp_agents.stores.student_card`, where serving reads it."""

from cp_agents.stores.student_card import CARD, StudentCard, read_card, weights_hash, write_card

__all__ = ["CARD", "StudentCard", "read_card", "weights_hash", "write_card"]
