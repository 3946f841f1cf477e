"""The wire contract and the bundle schema; imports nothing of the other packages."""
