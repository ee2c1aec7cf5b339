"""How fast everything is on this machine. Figures of interest are ratios within one run, measured by turns."""

SUBJECTS = ("model", "folder", "text", "start", "interrogator", "training")
"""Modules of this package, each with `measure(say) -> list[Row]`, in the order in which `--suite` runs them."""
