"""`python -m speakerlens.probe`: exit status 0 if the server of this container is ready; the image's health check.

It asks `/readyz` with a socket alone: the client, with gRPC and numpy, takes ten times the processor time, every ten
seconds. It reads the server's own variables. Where nothing listens on the metrics port, as with `--no-metrics`, it asks
over gRPC.
"""

import os
import socket
import sys
from collections.abc import Mapping

TIMEOUT_SECONDS = 4.0
PORT, METRICS_PORT = 50051, 8000
# Addresses to bind that are none to connect to.
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Return 0 if the server is ready, else another exit status after a line on stderr."""
    try:
        answer = _ask(_address(environ, "METRICS_HOST"), _port(environ, "METRICS_PORT", METRICS_PORT))
    except ConnectionError:
        return _ask_by_grpc(environ)
    except OSError as error:
        answer = str(error).encode()
    if answer.split(b" ")[1:2] == [b"200"]:
        return 0
    sys.stderr.write(f"not ready: {answer.decode(errors='replace')}\n")
    return 1


def _ask(host: str, port: int) -> bytes:
    """Return the status line of the page of readiness."""
    with socket.create_connection((host, port), TIMEOUT_SECONDS) as connection:
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as answer:
            return answer.readline(256).strip()


def _ask_by_grpc(environ: Mapping[str, str]) -> int:
    from speakerlens.cli.main import main as command  # noqa: PLC0415 - what makes it dear

    host, port = _address(environ, "HOST"), _port(environ, "PORT", PORT)
    server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return command(["health", "--server", server, "--timeout", f"{TIMEOUT_SECONDS:g}"])


def _address(environ: Mapping[str, str], name: str) -> str:
    host = environ.get(f"SPEAKERLENS_{name}", "")
    return ANY.get(host, host)


def _port(environ: Mapping[str, str], name: str, otherwise: int) -> int:
    """Return a port; Kubernetes sets SPEAKERLENS_PORT to tcp://… beside a Service named speakerlens: not a port."""
    text = environ.get(f"SPEAKERLENS_{name}", "")
    return int(text) if text.isdigit() else otherwise


if __name__ == "__main__":
    sys.exit(main())
