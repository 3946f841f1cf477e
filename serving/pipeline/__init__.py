"""From audio to answers, window by window, for recordings and streams; independent of any protocol."""
