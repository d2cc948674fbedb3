"""Photos by address: what is public is read, within bounds; the server's own network is out of reach."""

import http.server
import threading

import pytest

from modeling import ImageError
from modeling import web_photo as web
from modeling.page_events import photo_source


class Site(http.server.BaseHTTPRequestHandler):
    """A photo, a photo behind a redirection, redirections without end or into a private network, and a slow one."""

    photo = b""

    def do_GET(self):
        ways = {
            "/moved": "/photo.jpg",
            "/round": "/round",
            "/inside": "http://10.0.0.1/photo.jpg",
            "/disk": "file:///x",
        }
        if self.path in ways:
            self.send_response(302)
            self.send_header("Location", ways[self.path])
            self.end_headers()
        elif self.path in ("/photo.jpg", "/slow"):
            if self.path == "/slow":
                released.wait(10)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.photo)
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


released = threading.Event()


@pytest.fixture(scope="module")
def site(example_photos):
    Site.photo = example_photos[0].read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def public(monkeypatch):
    """As if this machine's own address were public, and no other."""

    async def check(host):
        if host != "127.0.0.1":
            raise ValueError(host)
        return host

    monkeypatch.setattr(web, "async_validate_url", check)


def test_a_public_photo_is_read(site, public):
    for path in ("/photo.jpg", "/moved"):
        assert web.fetch_photo(site + path, 10**6) == Site.photo
    assert photo_source({"path": f"{site}/photo.jpg"}) == photo_source({"url": f"{site}/photo.jpg"}) == Site.photo


@pytest.mark.parametrize("path", ["/none.jpg", "/round", "/inside", "/disk"])
def test_what_leads_nowhere_gives_a_sentence(site, public, path):
    with pytest.raises(ImageError, match="upload it instead"):
        web.fetch_photo(site + path, 10**6)


def test_size_and_time_have_an_end(site, public, monkeypatch):
    with pytest.raises(ImageError, match="larger than 0 MB"):
        web.fetch_photo(f"{site}/photo.jpg", len(Site.photo) - 1)
    assert web.fetch_photo(f"{site}/photo.jpg", len(Site.photo)) == Site.photo
    monkeypatch.setattr(web, "SECONDS", 0.2)
    with pytest.raises(ImageError, match="did not answer"):
        web.fetch_photo(f"{site}/slow", 10**6)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "192.168.1.1"])
def test_the_network_of_the_server_is_out_of_reach(site, host, monkeypatch):
    async def nothing(_):
        return []

    monkeypatch.setattr("safehttpx.async_resolve_hostname_google", nothing)
    port = site.rpartition(":")[2]
    with pytest.raises(ImageError, match="upload it instead"):
        web.fetch_photo(f"http://{host}:{port}/photo.jpg", 10**6)
    with pytest.raises(ImageError, match="upload it instead"):
        photo_source({"path": f"http://{host}:{port}/photo.jpg"})


@pytest.mark.parametrize("text", ["http://", "https:///photo.jpg", "http://a b", "http://[", "HTTP://\x00"])
def test_what_is_no_address_gives_a_sentence(text):
    with pytest.raises(ImageError, match="upload it instead"):
        web.fetch_photo(text, 10**6)
