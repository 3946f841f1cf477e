"""The network: front end, encoder, heads, training objectives, LayerCAM and imported checkpoints."""
