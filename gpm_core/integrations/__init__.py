"""Preference models in other libraries' trainers: one module for each library."""
