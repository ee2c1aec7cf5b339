"""Workers that Ray starts, on this machine or on a cluster: `pool.py`."""
