"""HTTP: the calls of `speakerlens.v1.SpeakerIdentification` as JSON, live audio by WebSocket, and the page.

It translates and nothing else: every call runs in the same interceptor and the same servicer as by gRPC.
"""
