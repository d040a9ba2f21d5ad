"""Which pictures a server fetches, and which it does not."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

from aligngpt.processing.image_conversion_aligngpt import ImageError
from aligngpt.serving import remote_images
from aligngpt.serving.remote_images import ForbiddenAddressError, ImageSource, is_public


@pytest.fixture(scope="module")
def web(png):
    """A site on loopback; its address, and the paths that were asked for."""
    asked = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            target = {"/file": "file:///etc/passwd", "/loop": "/loop", "/away": "/picture"}.get(self.path)
            if self.path.startswith("/to?"):
                target = self.path[4:]
            if target is not None:
                self.send_response(302)
                self.send_header("Location", target)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(404 if self.path == "/nothing" else 200)
            self.end_headers()
            try:
                if self.path == "/endless":
                    for _ in range(10_000):
                        self.wfile.write(b"x" * 10_000)
                elif self.path == "/slow":
                    for _ in range(50):
                        self.wfile.write(b"x")
                        time.sleep(0.1)
                elif self.path == "/text":
                    self.wfile.write(b"hello")
                else:
                    self.wfile.write(png(1))
            except OSError:
                pass  # the client has had enough

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_addresses_of_this_machine_and_its_network_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "127.1", "2130706433", "0x7f000001", "0", "[::ffff:127.0.0.1]"]
)
def test_no_way_of_writing_it_leads_to_this_machine(host, web):
    address, asked = web
    asked.clear()
    with pytest.raises((ForbiddenAddressError, ImageError)):
        ImageSource().open(f"http://{host}:{address.rpartition(':')[2]}/picture")
    assert not asked


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "/etc/passwd",
        "picture.png",
        "ftp://example.com/a.png",
        "gopher://x",
        "//example.com/a.png",
        " http://127.0.0.1/a.png",
        "iVBORw0KGgo" * 10,
        b"bytes",
        None,
    ],
)
@pytest.mark.parametrize("urls", ["public", "all", "none"])
def test_only_data_and_http_are_sources(source, urls):
    with pytest.raises(ForbiddenAddressError):
        ImageSource(urls).open(source)


def test_a_name_with_one_address_inside_is_refused_as_a_whole(monkeypatch):
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("93.184.216.34", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: entries)
    with pytest.raises(ForbiddenAddressError, match="example.com is 10.0.0.7"):
        ImageSource().open("http://example.com/a.png")


def test_the_address_that_was_looked_at_is_the_one_that_is_connected_to(monkeypatch, web):
    """A name whose second answer is another one gains nothing: there is no second question."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    connected = []

    def answer(host, port, *args, **kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(self, host, *args):
        connected.append(host)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(remote_images.httpcore.SyncBackend, "connect_tcp", connect)
    with pytest.raises(ImageError):
        ImageSource().open("http://rebinding.example/a.png")
    assert connected == ["93.184.216.34"]


def test_a_redirect_is_followed_and_one_to_the_inside_is_not(monkeypatch, web):
    address, asked = web
    # The site itself counts as public here; where it redirects to does not
    monkeypatch.setattr(remote_images, "is_public", lambda ip: ip == "127.0.0.1")
    assert ImageSource().open(f"{address}/away").size == (20, 12)
    for target in ("http://10.0.0.1/a.png", "http://[::1]/a.png", "http://169.254.169.254/latest"):
        with pytest.raises(ForbiddenAddressError, match="not on the public internet"):
            ImageSource().open(f"{address}/to?{target}")
    with pytest.raises(ForbiddenAddressError, match="redirected to 'file:///etc/passwd'"):
        ImageSource().open(f"{address}/file")
    with pytest.raises(ImageError, match="redirected more than 3 times"):
        ImageSource().open(f"{address}/loop")


def test_what_is_too_large_too_slow_or_no_picture_is_refused(web):
    address, asked = web
    inside = ImageSource("all", max_bytes=50_000, timeout=1)
    assert inside.open(f"{address}/picture").size == (20, 12)
    assert (
        inside.open(f"{address}/Stra\u00dfe.png?q=\u00e9").size == (20, 12)
        and asked[-1] == "/Stra%C3%9Fe.png?q=%C3%A9"
    )
    for path, told in (
        ("endless", "more than 50000 bytes"),
        ("slow", "within 1 seconds"),
        ("nothing", "status 404"),
        ("text", "no image of a known format"),
    ):
        with pytest.raises(ImageError, match=told):
            inside.open(f"{address}/{path}")
    for url in ("http://", "http://[", "http://a b/", "http://x:99999/", "http://\u2603.invalid/"):
        with pytest.raises((ImageError, ForbiddenAddressError)):
            inside.open(url)


def test_the_server_says_why_it_does_not_fetch(client, web):
    address, asked = web
    asked.clear()
    for url in (f"{address}/picture", "file:///etc/passwd"):
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
        assert raised.value.code == "forbidden_url"
    assert not asked


def test_the_server_names_what_is_wrong_with_a_picture(client, data_url, png):
    import base64

    broken = "data:image/png;base64," + base64.b64encode(png(1)[:200]).decode()
    for url, kind in ((broken, "truncated"), ("data:image/png;base64,????", "corrupt"), ("data:,x", "corrupt")):
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
        assert raised.value.code == kind
