"""Networks trained by others: their files read safely, checked, and turned into networks of this program."""
