"""What the image is built with, and its check."""
