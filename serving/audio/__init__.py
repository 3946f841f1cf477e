"""Audio as it comes: decoded within limits, cut into windows, searched for speech."""
