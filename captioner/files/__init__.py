"""The ground floor of everything that touches the disk: written whole or not at all, read without surprises."""
