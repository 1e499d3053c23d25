"""The open benchmark: public data, baselines and the paper's tables."""
