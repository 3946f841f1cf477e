"""Run an image as a cluster would: user 10001, read-only but for /tmp, no capabilities, the host's network.

With docker, by docker. With buildah, whose `run` cannot do all of that, in a mount namespace of the image's files.
"""

import json
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from deploy.image.builder import config, program, run

USER = 10001
# Arguments: the image's files, the bundles, and the command.
CONFINED = f"""
root=$1 bundles=$2
shift 2
mkdir -p "$root/bundles"
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind "$bundles" "$root/bundles"
mount -o remount,bind,ro "$root/bundles"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid={USER} --regid={USER} --clear-groups \\
  --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


class Container:
    """An image that can be run several times; a context manager that removes it.

    Args:
        tag: the image.
        bundles: the folder that is /bundles in it.
    """

    def __init__(self, tag: str, bundles: Path) -> None:
        self._tag = tag
        self._bundles = bundles.resolve()
        self.config = config(tag)
        self.environment: list[str] = self.config["Env"]
        self.entrypoint: list[str] = self.config["Entrypoint"]
        self._name = ""
        self._root = ""
        if program() == "buildah":
            self._name = run("buildah", "from", tag).strip()
            self._root = run("buildah", "mount", self._name).strip()

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start the image's entrypoint with arguments."""
        return self._start([*self.entrypoint, *arguments])

    def run(self, *command: str) -> str:
        """Return what another command prints in the image.

        Raises:
            RuntimeError: it fails.
        """
        process = self._start(command)
        out, log = process.communicate(timeout=120)
        if process.returncode:
            raise RuntimeError(f"{command[0]} in the image: {log[-1000:]}")
        return out

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        if program() == "docker":
            name = f"speakerlens-{uuid.uuid4().hex[:8]}"
            words = [
                "docker",
                "run",
                "--rm",
                f"--name={name}",
                "--network=host",
                "--read-only",
                "--tmpfs=/tmp",
                "--cap-drop=ALL",
            ]
            words += [
                "--security-opt=no-new-privileges",
                f"--volume={self._bundles}:/bundles:ro",
                f"--entrypoint={command[0]}",
            ]
            words += [self._tag, *command[1:]]
        else:
            words = [
                "unshare",
                "--mount",
                "--propagation=private",
                "sh",
                "-ec",
                CONFINED,
                "sh",
                self._root,
                str(self._bundles),
            ]
            words += ["env", "-i", *self.environment, *command]
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Container":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._name:
            run("buildah", "umount", self._name)
            run("buildah", "rm", self._name)


RIGHTS = """
import json, os

def writable(path):
    try:
        open(os.path.join(path, "x"), "w").close()
        return True
    except OSError:
        return False

status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
paths = ("/", "/opt/speakerlens", "/bundles", "/tmp", "/var/tmp")
print(json.dumps({
    "uid": os.getuid(),
    "groups": os.getgroups(),
    "capabilities": [status[name] for name in ("CapEff", "CapPrm", "CapBnd")],
    "no_new_privs": status["NoNewPrivs"],
    "writable": [path for path in paths if writable(path)],
}))
"""


def rights(container: Container) -> dict[str, object]:
    """Return user, groups, capabilities and what can be written, as a process in the container sees them."""
    found: dict[str, object] = json.loads(container.run("python", "-c", RIGHTS))
    return found
