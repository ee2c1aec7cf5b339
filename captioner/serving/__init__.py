"""The resident service: models that stay loaded, a bounded queue before them, and pictures that are remembered.

`engine.py` is all that others call; `scheduler.py` decides what is asked when, `bench.py` asks a batch of a model,
`memories.py` keeps what a picture was encoded to, `metrics.py` counts. Nothing here knows of HTTP.
"""
