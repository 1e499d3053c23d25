"""Backends: where samples come from. `base` is the protocol; one adapter a file; `registry` finds them."""
