"""How fast everything is on this machine. Figures of interest are ratios within one run, measured by turns."""
