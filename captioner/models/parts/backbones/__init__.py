"""Image towers that several models stand on."""
