"""A picture's embedding → prefix → GPT-2: clip-prefix, published ClipCap files, and the bundled mini."""
