"""Serving: model bundles in, predictions, saliency and metrics out over gRPC. Needs no torch."""
