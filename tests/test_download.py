"""Test downloads against a server on this machine, with and without the support of HTTP Range."""

import hashlib
import re
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import small_releases

from fedexit.data.corpora import fetch_corpus, open_corpus
from fedexit.data.original import catalogue
from fedexit.data.original import download as module
from fedexit.data.original.catalogue import ORIGINALS, Archive
from fedexit.data.original.download import download
from fedexit.support.errors import FedexitError

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serve `files`. The first answers stop after the number of bytes in `cuts`, one per answer."""

    daemon_threads = True

    def __init__(self, ranges):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.files, self.cuts, self.asked = ranges, {"/a.bin": CONTENT}, [], []

    def url(self, path="/a.bin"):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wish = self.server, self.headers.get("Range")
        server.asked.append(wish)
        content = server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", wish)[1]) if wish and server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if wish and server.ranges else 200)
        if wish and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + server.cuts.pop(0)] if server.cuts else content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(request):
    server = Server(request.param)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_interrupted_download_resumes(server, tmp_path):
    server.cuts = [3000, 2000]
    target, part = tmp_path / "x" / "a.bin", tmp_path / "x" / "a.bin.part"
    for size in (3000, 5000 if server.ranges else 2000):
        with pytest.raises(
            FedexitError, match=f"interrupted after {size:,} of 10,240 bytes; run the command again to r"
        ):
            download(server.url(), target, SHA256)
        assert part.stat().st_size == size and not target.exists()
    assert download(server.url(), target, SHA256) == target and target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000-", f"bytes={5000 if server.ranges else 2000}-"] and not part.exists()
    download(server.url(), target, SHA256)
    assert len(server.asked) == 3  # a complete file is not asked for again


def test_a_corrupted_download_is_refused_with_both_checksums(server, tmp_path):
    target = tmp_path / "a.bin"
    (tmp_path / "a.bin.part").write_bytes(b"x" * 3000)  # the rest of it is appended, or it is replaced
    wrong = hashlib.sha256(b"x" * 3000 + CONTENT[3000:]).hexdigest() if server.ranges else SHA256
    with pytest.raises(
        FedexitError, match=f"the checksum is {wrong}, but that of http.* is {'0' * 64}; remove the file"
    ):
        download(server.url(), target, "0" * 64)
    assert not target.exists() and not (tmp_path / "a.bin.part").exists()
    target.write_bytes(b"of the user")
    with pytest.raises(FedexitError, match=f"a.bin: the checksum is {hashlib.sha256(b'of the user').hexdigest()}"):
        download(server.url(), target, SHA256)
    assert target.read_bytes() == b"of the user"


@pytest.mark.parametrize("extra", [b"", b"more"], ids=["complete", "too long"])
def test_a_part_that_is_complete_or_too_long_is_settled(server, tmp_path, extra):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + extra)
    assert download(server.url(), tmp_path / "a.bin", SHA256).read_bytes() == CONTENT


def test_what_cannot_be_downloaded_is_one_line(server, tmp_path, monkeypatch):
    gone = Server(ranges=True)
    gone.server_close()
    for url, message in [
        ("file:///etc/hostname", "'file:///etc/hostname' is no web address; give one that begins with https"),
        (server.url("/none"), "the server answers 404 Not Found; check the address"),
        (gone.url(), "no connection .*refused.*; check the network, then run the command again"),
    ]:
        with pytest.raises(FedexitError, match=message) as caught:
            download(url, tmp_path / "b.bin")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(FedexitError, match=r"0\.0 GB do not fit, 0\.0 GB are free; free space"):
        download(server.url(), tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()


def test_fetch_downloads_checks_and_unpacks_parts_of_a_release(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    root = small_releases.librispeech(tmp_path / "LibriSpeech")
    archives = []
    for part in ("dev-clean", "test-clean", "train-clean-100"):
        file = tmp_path / f"{part}.tar.gz"
        with tarfile.open(file, "w:gz") as archive:
            archive.add(root / part, f"LibriSpeech/{part}")
        server.files[f"/12/{part}.tar.gz"] = file.read_bytes()
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        archives.append(Archive(part, f"https://example.org/{part}.tar.gz", sha256, usual=part != "train-clean-100"))
    changed = replace(ORIGINALS["librispeech"], archives=tuple(archives))
    monkeypatch.setitem(catalogue.ORIGINALS, "librispeech", changed)
    mirror, said = server.url("/12/"), []
    server.cuts = [500]
    with pytest.raises(FedexitError, match=r"dev-clean\.tar\.gz: interrupted after 500 of"):
        fetch_corpus("librispeech", url=mirror, say=said.append)
    corpus = fetch_corpus("librispeech", url=mirror, say=said.append)
    assert set(corpus.manifest["split"]) == {"dev", "test"} and len(corpus.manifest) == 6
    assert len(fetch_corpus("librispeech").manifest) == 6 and len(server.asked) == 3  # it is there already
    fetch_corpus("librispeech", url=mirror, parts=["train-clean-100", "dev-clean"], say=said.append)
    assert set(open_corpus("librispeech").manifest["split"]) == {"train", "dev"} and len(server.asked) == 4
    server.files["/12/test-clean.tar.gz"] = b"another file"
    (tmp_path / "data" / "downloads" / "librispeech" / "test-clean.tar.gz").unlink()
    with pytest.raises(
        FedexitError, match=rf"the checksum is {hashlib.sha256(b'another file').hexdigest()}.*{archives[1].sha256}"
    ):
        fetch_corpus("librispeech", url=mirror, parts=["test-clean"], say=said.append)
    assert set(open_corpus("librispeech").manifest["split"]) == {"train", "dev"}  # the corpus that was there stays
