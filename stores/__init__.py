"""The trace store: every sample that was asked for, and all that followed from it."""
