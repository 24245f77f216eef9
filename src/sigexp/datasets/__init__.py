"""Synthesizers: one short function each, from YAML fields to a `Problem`."""
