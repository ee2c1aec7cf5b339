"""More pictures than one process can do: a plan of shards, a part for each, and what they come to.

`plan.py` lists pictures once, in shards that never change. `part.py` writes one parquet file a shard, whole or not at
all, under a name that follows from the shard and the settings: whoever writes it writes the same, so workers may be
killed, started again and even doubled. `status.py` counts what is there, `merge.py` makes one output of it. Any number
of processes on any number of machines may work on one folder; they need nothing but the folder.
"""
