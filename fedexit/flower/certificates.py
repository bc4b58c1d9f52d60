"""Make the certificates of a SuperLink and the keys of its nodes, valid for a year."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from fedexit.support.extras import extra
from fedexit.support.files import write_bytes

with extra("flower"):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    from cryptography.x509.oid import NameOID

_DAYS = 365


def make_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """Write `ca.crt`, `server.pem` and `server.key` to `folder`. The key of the authority is thrown away.

    Args:
        folder: An existing folder.
        hosts: Names and addresses by which nodes reach the SuperLink, such as `192.168.1.20`.
    """
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = _name("fedexit fleet")
    own = _certificate(issuer, issuer, authority, authority, x509.BasicConstraints(ca=True, path_length=0))
    alternative = x509.SubjectAlternativeName([_host(host) for host in hosts])
    signed = _certificate(_name(hosts[0]), issuer, server, authority, alternative)
    write_bytes(folder / "ca.crt", own.public_bytes(Encoding.PEM))
    write_bytes(folder / "server.pem", signed.public_bytes(Encoding.PEM))
    _write_secret(folder / "server.key", server)


def make_key(file: Path) -> str:
    """Write a node's private key to `file` and its public key to `file`.pub, in SSH format; return the public one."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(file, key, PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_bytes(file.with_name(file.name + ".pub"), public + b"\n")
    return public.decode()


def _name(text: str) -> "x509.Name":
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> "x509.GeneralName":
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: "x509.Name",
    issuer: "x509.Name",
    key: "ec.EllipticCurvePrivateKey",
    signer: "ec.EllipticCurvePrivateKey",
    extension: "x509.ExtensionType",
) -> "x509.Certificate":
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=_DAYS))
    return builder.add_extension(extension, critical=True).sign(signer, hashes.SHA256())


def _write_secret(file: Path, key: "ec.EllipticCurvePrivateKey", form: "PrivateFormat" = PrivateFormat.PKCS8) -> None:
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
