"""Every metric as a module of the `evaluate` library: `evaluate.load("eval/hf/NAME")`."""
