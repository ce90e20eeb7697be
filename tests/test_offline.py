"""No test reaches the network, and neither does a process that a test starts; this machine itself stays reachable."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

ELSEWHERE = "192.0.2.1"
"""An address that belongs to nobody (RFC 5737): without the block these tests would wait for it, not raise."""

REFUSED = "tests have no network, and this one wants to reach"


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection((ELSEWHERE, 80), timeout=1),
        lambda: socket.socket().connect((ELSEWHERE, 80)),
        lambda: socket.socket().connect_ex((ELSEWHERE, 80)),
        lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
        lambda: socket.getaddrinfo("example.org", 443),
        lambda: socket.gethostbyname("example.org"),
        lambda: http.client.HTTPConnection(ELSEWHERE, timeout=1).request("GET", "/"),
        lambda: urllib.request.urlopen("https://example.org", timeout=1),
    ],
    ids=["create_connection", "connect", "connect_ex", "ipv6", "getaddrinfo", "gethostbyname", "http", "url"],
)
def test_what_wants_the_network_is_refused(reach):
    with pytest.raises(RuntimeError, match=REFUSED):
        reach()


def test_a_process_that_a_test_starts_is_refused_too():
    code = f"import socket; socket.create_connection(('{ELSEWHERE}', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and REFUSED in done.stderr


def test_hubs_are_told_to_stay_off_the_network():
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_this_machine_stays_reachable(name):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"here"))
        thread.start()
        with socket.create_connection((name, server.getsockname()[1]), timeout=10) as client:
            assert client.recv(4) == b"here"
        thread.join()


def test_unix_sockets_stay_reachable(tmp_path):
    path = os.path.relpath(tmp_path / "s")  # such addresses hold about 100 letters
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)


def test_own_name_resolves_as_before():
    try:
        socket.getaddrinfo(socket.gethostname(), 0)
    except socket.gaierror:  # a machine may have a name that nobody knows
        pass
