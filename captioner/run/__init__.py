"""Many pictures: read ahead, ask, survive, resume."""
