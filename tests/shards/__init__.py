"""Shards: what stays true of a plan's rows, whatever happens to workers."""
