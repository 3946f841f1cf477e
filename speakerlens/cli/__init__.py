"""The command line `speakerlens`."""
