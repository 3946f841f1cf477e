"""Corpora in, batches out: manifests, crops, interference, packed corpora, and the commands that prepare them."""
