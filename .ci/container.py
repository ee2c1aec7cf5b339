#!/usr/bin/env python3
"""The container where no engine runs: what the Dockerfile says, step by step, in a plain chroot; then it is tried.

    sudo .ci/container.py build FOLDER      # the base by debootstrap, RUN by chroot, COPY of what git tracks
    sudo .ci/container.py try FOLDER        # without a network: health, a caption, whose process it is, its end

The base image python:3.11-slim-bookworm is Debian bookworm with Python 3.11 and pip; here both are Debian's own.
Mounts and processes are this script's alone (unshare), so that nothing is left of them however it ends. PIP_…
variables of the caller hold in the build, and --bind shows it a folder of this machine, such as one with packages.
It needs Linux, root, debootstrap and git.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

CONTEXT = Path(__file__).resolve().parent.parent
KNOWN = ("FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")
KEY = "a key to try the container with"


def read(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, the rest of it), with its lines joined and comments left out."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    steps = [(line.split()[0], line.split(None, 1)[1].strip()) for line in joined.splitlines()]
    for name, _ in steps:
        if name not in KNOWN:
            raise SystemExit(f"The Dockerfile says {name}, which this script cannot do.")
    return steps


class Image:
    """A folder with the tree of files, and what Docker notes beside it."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder / "root"
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.workdir, self.user = "/", "0"
        self.entrypoint: list[str] = []
        self.cmd: list[str] = []
        self.health: list[str] = []

    def save(self) -> None:
        noted = {name: value for name, value in vars(self).items() if name not in ("folder", "root")}
        (self.folder / "config.json").write_text(json.dumps(noted, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Image:
        image = cls(folder)
        vars(image).update(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        return image

    def start(self, command: list[str], more: dict[str, str], stderr: int | None = None) -> subprocess.Popen:
        """A command inside, as its user, in its folder."""
        users = [line.split(":") for line in (self.root / "etc/passwd").read_text(encoding="utf-8").splitlines()]
        [(group, home)] = [(row[3], row[5]) for row in users if self.user in (row[0], row[2])]
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', self.workdir, *command]
        return subprocess.Popen(
            ["chroot", f"--userspec={self.user}:{group}", str(self.root), *inside],
            env={"HOME": home, **self.env, **more},
            stderr=stderr,
        )

    def inside(self, path: str) -> Path:
        return self.root / os.path.normpath(os.path.join(self.workdir, path)).lstrip("/")


def build(image: Image, arguments: dict[str, str], binds: list[str]) -> None:
    """Every step of the Dockerfile."""
    image.folder.mkdir(parents=True)
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for name, rest in read((CONTEXT / "Dockerfile").read_text(encoding="utf-8")):
        print(f"== {name} {rest[:100]}", flush=True)
        begun = time.perf_counter()
        if name == "FROM":
            base(image, rest, binds)
        elif name == "ARG":
            argument, _, default = rest.partition("=")
            arguments.setdefault(argument, default)
        elif name == "ENV":
            image.env |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif name == "RUN":
            if status := image.start(["sh", "-c", rest], arguments | pip).wait():
                raise SystemExit(f"This step ended with {status}.")
        elif name == "WORKDIR":
            image.workdir = rest
            image.inside(".").mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            copy(image, rest.split())
        elif name == "USER":
            image.user = rest
        elif name == "HEALTHCHECK":
            image.health = json.loads(rest.partition("CMD")[2])
        elif name in ("ENTRYPOINT", "CMD"):
            setattr(image, name.lower(), json.loads(rest))
        if (seconds := time.perf_counter() - begun) > 1:
            print(f"   {seconds:.0f} s", flush=True)
    image.save()


def base(image: Image, name: str, binds: list[str]) -> None:
    """Debian with the Python of the base image, the settings of the network, and the folders to be shown."""
    match = re.fullmatch(r"python:(\d+\.\d+)-slim-(\w+)", name)
    if match is None:
        raise SystemExit(f"{name} is no image of Python on Debian.")
    python, release = match.groups()
    packages = "python3-pip,python-is-python3,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", release, str(image.root)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    [library] = image.root.glob("usr/lib/python3.*/")
    if library.name != f"python{python}":
        raise SystemExit(f"Debian {release} has {library.name}, the base image Python {python}.")
    (library / "EXTERNALLY-MANAGED").unlink(missing_ok=True)  # the image's pip installs without asking, too
    for file in ("etc/resolv.conf", "etc/hosts"):
        shutil.copy(Path("/", file), image.root / file)
    subprocess.run(["mount", "-t", "proc", "proc", str(image.root / "proc")], check=True)
    for bind in binds:
        target = image.root / bind.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", "-o", "ro", bind, str(target)], check=True)


def copy(image: Image, names: list[str]) -> None:
    """Files that git tracks and .dockerignore lets through. A folder's contents go into the target."""
    *sources, to = names
    target = image.inside(to)
    rules = (CONTEXT / ".dockerignore").read_text(encoding="utf-8").split()
    for source in sources:
        matching = [rule for rule in rules if fnmatch.fnmatch(source, rule.removeprefix("!"))]
        if matching and not matching[-1].startswith("!"):
            raise SystemExit(f".dockerignore keeps {source} from the build.")
        listed = subprocess.run(["git", "ls-files", "-z", source], cwd=CONTEXT, check=True, capture_output=True)
        for file in map(os.fsdecode, filter(None, listed.stdout.split(b"\0"))):
            inner = file.removeprefix(source).lstrip("/")
            copied = target / (inner or Path(file).name if target.is_dir() or inner else "")
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CONTEXT / file, copied)


def try_out(image: Image) -> None:
    """Start it as Docker would, wait until it says that it is healthy, ask for a caption, and end it."""
    import fcntl  # Linux has it

    with socket.socket() as any_socket:  # the loopback of a network of our own is down at first: SIOCSIFFLAGS, IFF_UP
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))
    subprocess.run(["mount", "-t", "proc", "proc", str(image.root / "proc")], check=True)
    begun = time.perf_counter()
    server = image.start([*image.entrypoint, *image.cmd], {"CAPTIONER_SERVE_KEY": KEY})
    while image.start(image.health, {}, subprocess.DEVNULL).wait() != 0:
        if server.poll() is not None or time.perf_counter() - begun > 120:
            raise SystemExit("It never got healthy.")
        time.sleep(0.5)
    print(f"healthy after {time.perf_counter() - begun:.1f} s")
    address = f"http://127.0.0.1:{image.cmd[image.cmd.index('--port') + 1]}/v1/generate"
    picture = base64.b64encode((CONTEXT / "examples/pictures/cat.jpg").read_bytes()).decode()
    asked = json.dumps({"image": picture}).encode()
    request = urllib.request.Request(address, asked, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request)
        raise SystemExit("It answers without the key.")
    except urllib.error.HTTPError as refused:
        print(f"without the key: {refused.code}")
    request.add_header("Authorization", f"Bearer {KEY}")
    begun = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        print(f"a caption after {time.perf_counter() - begun:.1f} s: {answer.read().decode()[:300]}")
    status = (image.root / f"proc/{server.pid}/status").read_text()
    found = dict(re.findall(r"^(Uid|VmHWM):\s+(\d+)", status, re.MULTILINE))
    print(f"user {found['Uid']}, peak {int(found['VmHWM']) / 1e3:.0f} MB of memory")
    server.send_signal(signal.SIGTERM)
    begun = time.perf_counter()
    try:
        ended = server.wait(10)
    except subprocess.TimeoutExpired:
        raise SystemExit("It takes longer to end than the 10 s that `docker stop` waits.") from None
    print(f"ended with {ended} after {time.perf_counter() - begun:.1f} s")
    if found["Uid"] == "0" or ended not in (0, 143):
        raise SystemExit("It runs as root, or does not end when it is asked to.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["build", "try"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build-arg", action="append", default=[], help="NAME=VALUE, as Docker's")
    parser.add_argument("--bind", action="append", default=[], help="a folder of this machine that the build sees")
    options = parser.parse_args()
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *(["--net"] if options.verb == "try" else [])]
    if os.environ.get("CAPTIONER_APART") != "1":
        os.environ["CAPTIONER_APART"] = "1"
        os.execvp("unshare", [*apart, sys.executable, *sys.argv])
    if options.verb == "build":
        build(Image(options.folder), dict(word.split("=", 1) for word in options.build_arg), options.bind)
        size = subprocess.run(["du", "-smx", str(options.folder / "root")], capture_output=True, text=True).stdout
        print(f"{size.split()[0]} MB")
    else:
        try_out(Image.load(options.folder))


if __name__ == "__main__":
    main()
