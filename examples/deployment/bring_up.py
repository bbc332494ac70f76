"""Real nodes on one machine, from nothing: certificates, keys, a SuperLink, SuperNodes.

Everything goes into one folder, talks over the loopback only, and is ended with the block.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]


def make_certificates(folder: Path, host: str = HOST) -> None:
    """Write ca.crt, server.pem and server.key: our own authority, and a server.

    The key of the authority is not written: nobody can make another certificate with it.
    """
    authority, server = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    issuer, subject = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("Own CA", host)
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(host))]
    root = _certificate(issuer, authority, issuer, authority, is_authority=True)
    leaf = _certificate(subject, server, issuer, authority, names=names)
    key = server.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    for name, one in (("ca.crt", root), ("server.pem", leaf)):
        (folder / name).write_bytes(one.public_bytes(serialization.Encoding.PEM))
    _write_secret(folder / "server.key", key)


def _certificate(
    subject: x509.Name,
    key: rsa.RSAPrivateKey,
    issuer: x509.Name,
    signing: rsa.RSAPrivateKey,
    *,
    is_authority: bool = False,
    names: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
    )
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return made.sign(signing, hashes.SHA256())


def make_key(path: Path) -> None:
    """Write the private key of a SuperNode to `path` and the public one to `path`.pub."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write_secret(path, private)
    path.with_suffix(".pub").write_bytes(public)


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


class Deployment:
    """A SuperLink and its SuperNodes, started with the block and ended with it.

    Parameters
    ----------
    folder : Path
        Where certificates, keys, logs and Flower's own files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def __enter__(self) -> Deployment:
        """Make certificates and start the SuperLink."""
        for name in ("home", "keys", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        make_certificates(self.folder)
        (self.folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "dep"\n\n[superlink.dep]\naddress = "{HOST}:{self.port}"\n'
            f'root-certificates = "{self.folder / "ca.crt"}"\n'
        )
        try:
            self._start(
                "superlink",
                *["flower-superlink", "--host", HOST, "--port", str(self.port)],
                *["--enable-supernode-auth", "--disable-runtime-dependency-installation"],
                *self._tls(),
            )
            self._wait_for_superlink()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """End everything that was started, with all that it started."""
        for signalled in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes.values():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signalled)
            with suppress(subprocess.TimeoutExpired):
                for process in self.processes.values():
                    process.wait(timeout=10)

    def _tls(self) -> list[str]:
        folder = self.folder
        return [
            *["--ssl-ca-certfile", str(folder / "ca.crt")],
            *["--ssl-certfile", str(folder / "server.pem")],
            *["--ssl-keyfile", str(folder / "server.key")],
        ]

    def key(self, name: str, register: bool = True) -> Path:
        """Make a key pair, and tell the SuperLink its public half."""
        path = self.folder / "keys" / name
        make_key(path)
        if register:
            self.flwr("supernode", "register", str(path.with_suffix(".pub")), "dep")
        return path

    def start_node(self, name: str, key: Path, config: str) -> None:
        """Start a SuperNode with a private key and a node config."""
        self._start(
            name,
            *["flower-supernode", "--superlink", f"{HOST}:{self.port}"],
            *["--root-certificates", str(self.folder / "ca.crt")],
            *["--auth-supernode-private-key", str(key)],
            *["--host", HOST, "--port", str(_free_port()), *self._tls()],
            *["--node-config", config],
        )

    def flwr(self, *arguments: str, timeout: float = 600) -> str:
        """Run a command of Flower's and return what it says."""
        done = subprocess.run(
            ["flwr", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise RuntimeError(f"flwr {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def log(self, name: str) -> str:
        """Return what a process has said so far."""
        return (self.folder / "logs" / f"{name}.txt").read_text(errors="replace")

    def _start(self, name: str, *command: str) -> None:
        """Start a process in a group of its own, so that what it starts is ended with it."""
        with (self.folder / "logs" / f"{name}.txt").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def _wait_for_superlink(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
                return
            if self.processes["superlink"].poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"the SuperLink did not start:\n{self.log('superlink')}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
