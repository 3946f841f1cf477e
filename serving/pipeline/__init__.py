"""From a question about audio to its answer, window by window, whole or live; free of any transport."""
