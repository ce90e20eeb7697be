"""Keeps the tests off the network, in this process and in those it starts.

A test that needs the network passes on one machine and fails on the next, or passes for the wrong reason. The file
tests/conftest.py runs this one and puts its folder on PYTHONPATH; Python imports a module of this name at the start of
every child.
Loopback addresses, this machine's own name and Unix sockets stay open: torchrun and notebooks talk through them.
"""

import ipaddress
import os
import socket


class NetworkBlocked(RuntimeError):
    """A test tried to reach the network."""


def _here(host) -> bool:
    """Say whether a host (name, address, bytes or None) is this machine."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost") or f"{host}.".startswith(f"{socket.gethostname()}."):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a name of another machine
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(host) -> None:
    if not _here(host):
        raise NetworkBlocked(f"tests have no network, and this one wants to reach {host!r}; see {__file__}")


def _guarded(name: str):
    original = getattr(socket.socket, name)

    def call(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse(address[0])
        return original(self, address, *rest)

    return call


def _guarded_lookup(name: str):
    original = getattr(socket, name)

    def call(host, *rest, **options):
        _refuse(host)
        return original(host, *rest, **options)

    return call


if not hasattr(socket, "tests_have_no_network"):
    for method in ("connect", "connect_ex"):
        setattr(socket.socket, method, _guarded(method))
    for function in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, function, _guarded_lookup(function))
    socket.tests_have_no_network = True
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
