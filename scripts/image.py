"""Build the image without Docker, and try it as a cluster runs it: any user, a read-only root, no network at all.

    python -m scripts.image                      # with buildah, as root; python:3.11-slim-bookworm from its registry
    python -m scripts.image --debootstrap        # where only Debian's packages are to be had
    python -m scripts.image --debootstrap -- --volume /etc/pip.conf:/etc/pip.conf:ro    # what follows is buildah's

Prints the layers and their sizes, how long the server took to start, and what it answered. ``--sbom FILE`` writes what
is in it (needs syft), ``--registry`` pushes it to a registry on this machine and pulls it again (docker-registry).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
WORK = ROOT / "var" / "image"
IMAGE, BASE = "localhost/hotswap:cpu", "localhost/python-base"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
# Nobody that the image knows, in the group that may write to the volume.
USER, PORT, REGISTRY = "54321:0", 8123, "127.0.0.1:5005"
# In chroots layers are no more than folders; a container runtime is not needed, nor to be had everywhere.
ENVIRONMENT = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay"}
START_SECONDS = 600
ASKED = {"model": "sentiment", "input": "A moving, beautifully acted film."}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="service-cpu", help="of the Dockerfile (service-cpu)")
    parser.add_argument(
        "--debootstrap", action="store_true", help="make the image to begin with from Debian's packages"
    )
    parser.add_argument("--sbom", metavar="FILE", type=Path, help="write what is in the image, as SPDX")
    parser.add_argument("--registry", action="store_true", help="push to a registry of this machine, and pull again")
    parser.add_argument("--inside", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("more", nargs="*", help="for buildah")
    options = parser.parse_args()
    if options.inside:
        return serve_inside(options.inside, options.more)
    if os.geteuid() != 0 or not shutil.which("buildah"):
        print("This needs root, and: apt-get install buildah debootstrap skopeo docker-registry", file=sys.stderr)
        return 2
    WORK.mkdir(parents=True, exist_ok=True)
    more = options.more
    if options.debootstrap:
        bootstrap()
        more = ["--build-arg", f"PYTHON_IMAGE={BASE}", *more]
    buildah(
        "bud", "--layers", "--build-arg", "BASE=baked", "--target", options.target, "--tag", IMAGE, *more, str(ROOT)
    )
    print_layers()
    with ExitStack() as stack:
        container = buildah("from", IMAGE, read=True).strip()
        stack.callback(buildah, "rm", container, read=True)
        folder = buildah("mount", container, read=True).strip()
        if options.sbom:
            subprocess.run(["syft", f"dir:{folder}", "-o", f"spdx-json={options.sbom}"], check=True)
        if options.target == "service-cpu":
            environment = json.loads(buildah("inspect", IMAGE, read=True))["OCIv1"]["config"]["Env"]
            command = [sys.executable, "-m", "scripts.image", "--inside", folder, "--", *environment]
            subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", *command], check=True)
    if options.registry:
        push_and_pull()
    return 0


def buildah(*arguments: str, read: bool = False) -> str:
    """Run buildah with a storage of its own; return what it prints."""
    command = ["buildah", "--root", str(WORK / "storage"), "--runroot", str(WORK / "run"), *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, text=True, stdout=subprocess.PIPE if read else None)
    return done.stdout or ""


def bootstrap() -> None:
    """Make an image with Python of nothing but Debian's packages, once."""
    if BASE in buildah("images", "--format", "{{.Name}}", read=True).split():
        return
    folder = WORK / "debian"
    shutil.rmtree(folder, ignore_errors=True)
    packages = "ca-certificates,python3,python3-venv"
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, folder, MIRROR], check=True)
    container = buildah("from", "scratch", read=True).strip()
    buildah("add", "--quiet", container, str(folder), "/")
    buildah("commit", "--quiet", container, BASE)
    buildah("rm", container, read=True)


def print_layers() -> None:
    """Print what each layer of the image came of, and its size unpacked."""
    image = json.loads(buildah("inspect", IMAGE, read=True))
    sizes = [layer["size"] for layer in json.loads(image["Manifest"])["layers"]]
    steps = [step["created_by"] for step in image["OCIv1"]["history"] if not step.get("empty_layer")]
    for size, step in zip(sizes, steps, strict=False):
        print(f"{size / 1e6:8.0f} MB  {' '.join(step.split())[:100]}")


def serve_inside(folder: Path, environment: list[str]) -> int:
    """Start the server in the unpacked image, ask it, and end it; in namespaces of its own."""
    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["mount", "--bind", folder, folder],
        ["mount", "-o", "remount,bind,ro", folder],
        ["mount", "-t", "proc", "proc", folder / "proc"],
        ["mount", "-t", "sysfs", "-o", "ro", "sysfs", folder / "sys"],
        ["mount", "--rbind", "/dev", folder / "dev"],
        ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", folder / "tmp"],
        ["mount", "-t", "tmpfs", "-o", "gid=0,mode=0770", "tmpfs", folder / "var/lib/hotswap"],
    ):
        subprocess.run(command, check=True)
    given = dict(entry.split("=", 1) for entry in environment)
    given |= {"HOTSWAP_ALLOW_ANONYMOUS": "true", "HOTSWAP_PORT": str(PORT), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    script = "cd /opt/hotswap && exec python -m service"
    started = time.monotonic()
    server = subprocess.Popen(["chroot", f"--userspec={USER}", folder, "/bin/sh", "-c", script], env=given)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60, trust_env=False) as client:
            while not _ready(client):
                if server.poll() is not None or time.monotonic() - started > START_SECONDS:
                    raise SystemExit("The server did not start.")
                time.sleep(0.5)
            print(f"ready after {time.monotonic() - started:.0f} s, as user {USER}, read-only, without a network")
            answer = client.post("/v1/predict", json=ASKED)
            print(answer.status_code, answer.text)
    finally:
        server.send_signal(signal.SIGTERM)
    return server.wait(60) or int(answer.status_code != 200)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def push_and_pull() -> None:
    """Push the image to a registry of this machine, and pull it into an empty storage."""
    config = WORK / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(WORK / "registry")}}
    config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": REGISTRY}}))
    registry = subprocess.Popen(["docker-registry", "serve", config], stderr=subprocess.DEVNULL)
    name = f"docker://{REGISTRY}/hotswap:cpu"
    try:
        _timed("pushed", lambda: buildah("push", "--tls-verify=false", IMAGE, name))
        pulled = ["skopeo", "copy", "--src-tls-verify=false", name, f"dir:{WORK / 'pulled'}"]
        _timed("pulled", lambda: subprocess.run(pulled, check=True, stdout=subprocess.DEVNULL))
        size = sum(path.stat().st_size for path in (WORK / "pulled").iterdir())
        print(f"{size / 1e6:.0f} MB travelled, packed")
    finally:
        registry.terminate()
        registry.wait(10)


def _timed(what: str, work: Callable[[], object]) -> None:
    started = time.monotonic()
    work()
    print(f"{what} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
