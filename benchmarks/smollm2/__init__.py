"""A recorded run with a real language model: which head predicts real preferences, and why."""
