"""The TLS options of Mosquitto's tools through theirs and through ours, against one Mosquitto: exit codes and what
arrives must be the same.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

import brokers

pytestmark = brokers.needs_mosquitto

DEADLINE_S = 30


class Place:
    """A directory with certificates, and the broker that has them: a port that asks for ours, one that doesn't."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        authority = trustme.CA()
        authority.cert_pem.write_to_path(directory / "ca.pem")
        trustme.CA().cert_pem.write_to_path(directory / "other.pem")
        for name, certificate in (
            ("server", authority.issue_cert("127.0.0.1")),
            ("misnamed", authority.issue_cert("elsewhere.example")),
            ("client", authority.issue_cert("client@example.org")),
        ):
            certificate.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
            certificate.private_key_pem.write_to_path(directory / f"{name}.key")
        (directory / "trusted").mkdir()
        command = ["openssl", "x509", "-in", directory / "ca.pem", "-noout", "-subject_hash"]
        name = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout.strip()
        (directory / "trusted" / f"{name}.0").symlink_to(directory / "ca.pem")
        self.ports = {name: brokers.free_port() for name in ("tls", "asking", "misnamed", "v12")}

    def configuration(self) -> str:
        def listener(name: str, certificate: str, more: str = "") -> str:
            files = f"certfile {self.directory}/{certificate}.pem\nkeyfile {self.directory}/{certificate}.key\n"
            return f"listener {self.ports[name]} 127.0.0.1\n{files}cafile {self.directory}/ca.pem\n{more}"

        return "".join(
            (
                listener("tls", "server"),
                listener("asking", "server", "require_certificate true\n"),
                listener("misnamed", "misnamed"),
                listener("v12", "server", "tls_version tlsv1.2\n"),
            )
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("tls"))
    with brokers.start_mosquitto(made.configuration()):
        yield made


# {d} is the directory. The port's name, the options, and whether a message arrives.
CASES = [
    ("tls", "--cafile {d}/ca.pem", True),
    ("tls", "--capath {d}/trusted", True),
    ("tls", "--cafile {d}/other.pem", False),
    ("tls", "--tls-use-os-certs", True),  # SSL_CERT_FILE says what they are
    ("tls", "--cafile {d}/other.pem --insecure", False),  # the name only
    ("tls", "", False),
    ("asking", "--cafile {d}/ca.pem --cert {d}/client.pem --key {d}/client.key", True),
    ("asking", "--cafile {d}/ca.pem --cert {d}/client.pem --key {d}/client.key --keyform pem", True),
    ("asking", "--cafile {d}/ca.pem", False),
    ("misnamed", "--cafile {d}/ca.pem", False),
    ("misnamed", "--cafile {d}/ca.pem --insecure", True),
    ("tls", "--cafile {d}/ca.pem --tls-version tlsv1.3", True),
    ("v12", "--cafile {d}/ca.pem --tls-version tlsv1.2", True),
    ("tls", "--cafile {d}/ca.pem --tls-version tlsv1.1", True),
    ("v12", "--cafile {d}/ca.pem --tls-version tlsv1.2 --ciphers ECDHE-ECDSA-AES256-GCM-SHA384", True),
    ("tls", "--cafile {d}/ca.pem --tls-alpn mqtt", True),
    ("tls", "--cafile {d}/client.key", False),
]


@pytest.mark.parametrize(("port", "argv", "arrives"), CASES)
def test_tls_options_do_what_mosquittos_do(port: str, argv: str, arrives: bool, place: Place) -> None:
    words = argv.replace("{d}", str(place.directory)).split()

    def exit_code(tool: list[str]) -> int:
        command = [*tool, "-h", "127.0.0.1", "-p", str(place.ports[port]), "-t", "a", "-m", "x", "-q", "1", *words]
        env = {**os.environ, "SSL_CERT_FILE": str(place.directory / "ca.pem"), "XDG_CONFIG_HOME": "/nonexistent"}
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False, env=env)
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0 or done.stderr
        return done.returncode

    with ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.map(exit_code, (["mosquitto_pub"], [sys.executable, "-m", "midge", "pub"]))
    assert (theirs == 0, ours == 0) == (arrives, arrives)


def test_a_url_of_tls_trusts_the_systems_certificates(place: Place) -> None:
    url = f"mqtts://127.0.0.1:{place.ports['tls']}/from/url"
    env = {**os.environ, "SSL_CERT_FILE": str(place.directory / "ca.pem")}
    sub = [sys.executable, "-m", "midge", "sub", url, "-C", "1"]
    for tool in (["mosquitto_pub", "-L"], [sys.executable, "-m", "midge", "pub"]):
        done = subprocess.run([*tool, url, "-m", tool[0], "-r"], env=env, timeout=DEADLINE_S, check=False)
        assert done.returncode == 0
        told = subprocess.run(sub, env=env, timeout=DEADLINE_S, check=False, capture_output=True, text=True)
        assert told.stdout == f"{tool[0]}\n"


def test_a_certificate_that_is_not_trusted_is_told_in_words(place: Place) -> None:
    command = [sys.executable, "-m", "midge", "pub", "-h", "127.0.0.1", "-p", str(place.ports["tls"]), "-t", "a"]
    other = str(place.directory / "other.pem")
    command += ["-m", "x", "--cafile", other]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 8  # MOSQ_ERR_TLS
    assert b"isn't trusted" in done.stderr
    assert b"check --cafile" in done.stderr
