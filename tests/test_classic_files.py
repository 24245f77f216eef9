"""Readers of the original files, against files written here, damaged ones, and a fake network."""

import gzip
import hashlib
import io
import re
import ssl
import tarfile
import threading
import tracemalloc
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sigexp.data import cache, cifar, download, idx
from sigexp.data.cache import REMOTES, cache_dir, fetch
from sigexp.data.cifar import read_cifar10
from sigexp.data.download import Remote
from sigexp.data.idx import read_digit_folder, read_idx

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx_bytes(values, dtype="u1"):
    values = np.asarray(values)
    header = bytes([0, 0, CODES[dtype], values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(dtype).tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(3, 28, 28), dtype=np.uint8)


# IDX


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_type_and_shape_is_read(tmp_path, dtype, shape, zipped):
    values = np.random.default_rng(1).integers(0, 100, size=shape)
    content = idx_bytes(values, dtype)
    (tmp_path / "file").write_bytes(gzip.compress(content) if zipped else content)  # by content, not by name
    read = read_idx(tmp_path / "file")
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "bytes of values; expected 2352 for 3 x 28 x 28"),
        (lambda b: b + b"\0", "bytes of values; expected 2352 for 3 x 28 x 28"),
        (lambda b: b[:9], "ends within its header"),
        (lambda b: b[:2], "expected an IDX header"),
        (lambda b: b"", "expected an IDX header"),
        (lambda b: b"\x01" + b[1:], "first bytes are 01 00 08 03; expected an IDX header"),
        (lambda b: b[:2] + b"\x0a" + b[3:], "expected an IDX header"),
        (lambda b: b[:3] + b"\x00" + b[4:], "expected an IDX header"),
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], "expected at most 1073741824 bytes"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, images, damage, message, zipped):
    content = damage(idx_bytes(images))
    path = tmp_path / "train-images"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_idx(path)
    assert str(path) in str(refusal.value)


def test_a_corrupted_gzip_file_never_gives_other_values(tmp_path, images):
    content = gzip.compress(idx_bytes(images), mtime=0)
    rng = np.random.default_rng(2)
    refused = 0
    for place in rng.integers(len(content), size=150):
        broken = bytearray(content)
        broken[place] ^= int(rng.integers(1, 256))
        (tmp_path / "file").write_bytes(broken)
        try:
            np.testing.assert_array_equal(read_idx(tmp_path / "file"), images)
        except ValueError:
            refused += 1
    assert refused > 100
    for length in (1, 2, 5, 12, 40, len(content) - 1):
        (tmp_path / "file").write_bytes(content[:length])
        with pytest.raises(ValueError, match="expected"):
            read_idx(tmp_path / "file")


@pytest.mark.parametrize("count", [10, 600_000])  # the header asks for less, or for more, than there is
def test_a_gzip_bomb_is_stopped(tmp_path, count):
    header = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">u4").tobytes()
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(header + bytes(50 << 20 if count == 10 else 1000)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"bytes of values; expected {count * 784} "):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_idx(tmp_path / "absent")
    with pytest.raises(ValueError, match="no such file"):
        read_idx(tmp_path)


def write_digits(folder, images, spelling="{}-idx{}-ubyte.gz"):
    for stem, stack in (("train", images), ("t10k", images[:2])):
        for name, dims, values in (("images", 3, stack), ("labels", 1, np.arange(len(stack)))):
            file = spelling.format(f"{stem}-{name}", dims)
            content = idx_bytes(values)
            (folder / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)


@pytest.mark.parametrize("spelling", ["{}-idx{}-ubyte", "{}-idx{}-ubyte.gz", "{}.idx{}-ubyte", "{}.idx{}-ubyte.gz"])
def test_all_spellings_of_the_original_names_are_read(tmp_path, images, spelling):
    write_digits(tmp_path, images, spelling)
    found = read_digit_folder(tmp_path)
    np.testing.assert_array_equal(found["train"][0], images)
    np.testing.assert_array_equal(found["train"][1], [0, 1, 2])
    np.testing.assert_array_equal(found["test"][0], images[:2])
    np.testing.assert_array_equal(found["test"][1], [0, 1])


def test_a_digit_folder_that_does_not_fit_together_is_refused(tmp_path, images):
    write_digits(tmp_path, images)
    labels, pictures = tmp_path / "t10k-labels-idx1-ubyte.gz", tmp_path / "train-images-idx3-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes([1, 2, 3])))
    with pytest.raises(ValueError, match="2 test images and 3 labels"):
        read_digit_folder(tmp_path)
    labels.write_bytes(gzip.compress(idx_bytes([[1, 2]])))
    with pytest.raises(ValueError, match=r"t10k-labels.* 1 x 2 values of uint8; expected N labels"):
        read_digit_folder(tmp_path)
    labels.unlink()
    with pytest.raises(ValueError, match="no t10k-labels-idx1-ubyte or"):
        read_digit_folder(tmp_path)
    for wrong in (images[:, :20], images.astype(float)):
        pictures.write_bytes(gzip.compress(idx_bytes(wrong, "u1" if wrong.dtype == np.uint8 else ">f8")))
        with pytest.raises(ValueError, match=r"train-images.*expected N x 28 x 28 of uint8"):
            read_digit_folder(tmp_path)


# CIFAR-10


def cifar_bytes(images, labels):
    return np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(images), -1)], 1).tobytes()


@pytest.fixture
def cifar_files():
    """The six files by name, two records each, and the images in them [12, 32, 32, 3]."""
    rng = np.random.default_rng(3)
    images = rng.integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(10, size=12, dtype=np.uint8)
    files = {
        name: cifar_bytes(images[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2]) for i, name in enumerate(cifar.FILES)
    }
    return files, images


def cifar_archive(files, prefix="cifar-10-batches-bin/"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["folder", "below", "archive", "dotted"])
def test_cifar_is_read_from_files_or_the_archive(tmp_path, cifar_files, layout):
    files, images = cifar_files
    if layout in ("archive", "dotted"):
        prefix = "./" * (layout == "dotted") + "cifar-10-batches-bin/"
        (tmp_path / cifar.ARCHIVE).write_bytes(cifar_archive({"readme.html": b"<p>", **files}, prefix))
    else:
        folder = tmp_path / (cifar.FOLDER if layout == "below" else ".")
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    found = read_cifar10(tmp_path)
    np.testing.assert_array_equal(found["train"], images[:10])
    np.testing.assert_array_equal(found["test"], images[10:])
    assert found["train"].dtype == np.uint8
    assert sorted(tmp_path.rglob("*")) == before
    assert cifar.has_cifar10(tmp_path)


def test_a_record_is_label_red_green_blue(tmp_path, cifar_files):
    files, _ = cifar_files
    record = bytes([7]) + b"\x01" * 1024 + b"\x02" * 1024 + b"\x03" * 1023 + b"\x09"
    for name in files:
        (tmp_path / name).write_bytes(record)
    test = read_cifar10(tmp_path)["test"]
    np.testing.assert_array_equal(test[0, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(test[0, 31, 31], [1, 2, 9])


@pytest.mark.parametrize(
    ("content", "message"),
    [(bytes(3072), "3072 bytes; expected a whole number"), (b"", "0 bytes"), (b"\x0a" + bytes(3072), "a label of 10")],
)
def test_a_file_that_holds_no_whole_records_is_refused(tmp_path, cifar_files, content, message):
    for name, sound in cifar_files[0].items():
        (tmp_path / name).write_bytes(content if name == "data_batch_3.bin" else sound)
    with pytest.raises(ValueError, match=f"data_batch_3.bin: {message}"):
        read_cifar10(tmp_path)


def test_missing_cifar_files_are_named(tmp_path, cifar_files):
    with pytest.raises(ValueError, match=r"no CIFAR-10 files; expected data_batch_1.bin .. 5 and test_batch.bin"):
        read_cifar10(tmp_path)
    for name, content in list(cifar_files[0].items())[:-1]:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"no test_batch.bin; expected"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "data_batch_1"])
def test_the_pickled_version_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="pickled and is not read"):
        read_cifar10(tmp_path)


def test_a_corrupted_archive_is_refused(tmp_path, cifar_files):
    path = tmp_path / cifar.ARCHIVE
    sound = cifar_archive(cifar_files[0])
    for content in (sound[: len(sound) // 2], sound[:-4], b"", b"no archive", gzip.compress(b"no tar" * 500)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: .*expected the archive as it was published"):
            read_cifar10(tmp_path)
    broken = bytearray(sound)
    broken[len(sound) // 2] ^= 0xFF
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="expected"):
        read_cifar10(tmp_path)


def test_only_plain_members_of_the_right_name_are_taken_from_an_archive(tmp_path, cifar_files):
    secret = tmp_path / "secret"
    secret.write_bytes(cifar_files[0]["test_batch.bin"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind in (("data_batch_1.bin", tarfile.SYMTYPE), ("data_batch_2.bin", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        for name, content in cifar_files[0].items():
            member = tarfile.TarInfo(f"../{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / cifar.ARCHIVE).write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"no data_batch_1.bin, data_batch_2.bin, .*test_batch.bin in"):
        read_cifar10(tmp_path / "in")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [cifar.ARCHIVE, "in", "secret"]


@pytest.mark.parametrize("limit", ["FILE_LIMIT_BYTES", "ARCHIVE_LIMIT_BYTES"])
def test_an_archive_larger_than_it_can_be_is_stopped(tmp_path, cifar_files, monkeypatch, limit):
    (tmp_path / cifar.ARCHIVE).write_bytes(cifar_archive({"padding": bytes(100_000), **cifar_files[0]}))
    monkeypatch.setattr(cifar, limit, 4000)
    with pytest.raises(ValueError, match="4000"):
        read_cifar10(tmp_path)


# The cache folder and downloads


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGEXP_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SIGEXP_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "sigexp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG standard says: ignore it
    assert cache_dir() == tmp_path / ".cache" / "sigexp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "sigexp"
    monkeypatch.setenv("SIGEXP_DATA", "~/mine")
    assert cache_dir() == tmp_path / "mine"


def test_every_download_is_https_and_pinned():
    assert set(REMOTES) == {"mnist", "fashion_mnist", "cifar10"}
    remotes = [remote for several in REMOTES.values() for remote in several]
    assert all(url.startswith("https://") and url.endswith(r.name) for r in remotes for url in r.mirrors)
    assert all(re.fullmatch("[0-9a-f]{64}", remote.sha256) for remote in remotes)
    assert len({remote.sha256 for remote in remotes}) == len(remotes) == 9
    for name in ("mnist", "fashion_mnist"):  # `_missing` pairs them with the names that the reader looks for
        assert [remote.name for remote in REMOTES[name]] == [f"{stem}-ubyte.gz" for stem in idx.DIGIT_FILES]


class Network:
    """Stands in for the internet: a server on this machine that all of HTTPS leads to.

    served: address -> the bytes it gives; a text is where it leads. What else is asked for is not found.
    """

    def __init__(self, monkeypatch):
        self.served, self.asked, self.resumes, self.cut = {}, [], True, None
        network = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self):
                network.answer(self, f"https://{self.headers['Host']}{self.path}")

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

        class Here(download.web.HTTPSHandler):
            def https_open(self, request):
                return self.do_open(lambda *_, timeout: HTTPConnection("127.0.0.1", port, timeout=timeout), request)

        monkeypatch.setattr(download, "https", Here)
        monkeypatch.setenv("no_proxy", "*")

    def answer(self, to, url):
        given = to.headers.get("Range")
        self.asked.append((url, given))
        content = self.served.get(url)
        if content is None:
            to.send_error(404)
            return
        if isinstance(content, str):
            to.send_response(302)
            to.send_header("Location", content)
            to.end_headers()
            return
        start = int(given[6:-1]) if given and self.resumes else 0
        to.send_response(206 if start else 200)
        to.send_header("Content-Length", str(len(content) - start))
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        to.end_headers()
        to.wfile.write(content[start : self.cut])


@pytest.fixture
def network(monkeypatch):
    found = Network(monkeypatch)
    yield found
    found.server.shutdown()
    found.server.server_close()


CONTENT = bytes(range(256)) * 40
FILE = Remote("file.bin", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), ("https://one/file.bin",))


def test_files_that_are_there_are_used_without_a_network(home, network, images, cifar_files):
    (home / "mnist").mkdir(parents=True)
    (home / "cifar10" / cifar.FOLDER).mkdir(parents=True)
    write_digits(home / "mnist", images, "{}.idx{}-ubyte")
    for name, content in cifar_files[0].items():
        (home / "cifar10" / cifar.FOLDER / name).write_bytes(content)
    assert fetch("mnist") == home / "mnist"
    assert fetch("cifar10") == home / "cifar10"
    assert network.asked == []


def test_only_missing_files_are_downloaded_from_the_first_mirror_that_answers(home, monkeypatch, network, images):
    folder = home / "mnist"
    folder.mkdir(parents=True)
    write_digits(folder, images)
    wanted = REMOTES["mnist"][2]
    content = (folder / wanted.name).read_bytes()
    (folder / wanted.name).unlink()
    mine = wanted._replace(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    monkeypatch.setitem(REMOTES, "mnist", tuple(mine if r is wanted else r for r in REMOTES["mnist"]))
    network.served[wanted.mirrors[1]] = content
    assert len(read_digit_folder(fetch("mnist"))["test"][0]) == 2
    assert network.asked == [(url, None) for url in wanted.mirrors]
    assert not list(folder.glob(".*"))


def test_without_a_network_it_says_which_files_go_where(home, network):
    with pytest.raises(ValueError, match="could not be downloaded") as refusal:
        fetch("fashion_mnist")
    message = str(refusal.value)
    assert str(home / "fashion_mnist") in message
    assert all(remote.name in message for remote in REMOTES["fashion_mnist"])
    assert "HTTP Error 404" in message
    assert "\n" not in message


def test_a_disk_that_refuses_is_no_network_error(home, monkeypatch, network):
    def refuse(*_):
        raise PermissionError("no right to write here")

    monkeypatch.setattr(cache, "download", refuse)
    with pytest.raises(PermissionError):
        fetch("cifar10")


def test_a_download_that_was_cut_off_goes_on_where_it_ended(tmp_path, network):
    network.served[FILE.mirrors[0]] = CONTENT
    network.cut = 4000
    with pytest.raises(ConnectionError, match="cut off after 4,000 of 10,240 bytes"):
        download.download(FILE, FILE.mirrors[0], tmp_path)
    assert not (tmp_path / FILE.name).exists()
    network.cut = None
    assert download.download(FILE, FILE.mirrors[0], tmp_path).read_bytes() == CONTENT
    assert [given for _, given in network.asked] == [None, "bytes=4000-"]
    assert [path.name for path in tmp_path.iterdir()] == [FILE.name]


def test_a_server_that_does_not_resume_gives_all_of_it(tmp_path, network):
    network.served[FILE.mirrors[0]], network.resumes = CONTENT, False
    (tmp_path / f".{FILE.name}.part").write_bytes(b"half of another")
    assert download.download(FILE, FILE.mirrors[0], tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "said"),
    [(CONTENT[::-1], "another file than the published one"), (CONTENT + b"!", "more than the published 10,240 bytes")],
)
def test_a_download_of_another_file_is_not_kept(tmp_path, network, content, said):
    network.served[FILE.mirrors[0]] = content
    with pytest.raises(ValueError, match=said):
        download.download(FILE, FILE.mirrors[0], tmp_path)
    assert not (tmp_path / FILE.name).exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0, "nothing that the next try would go on with"


@pytest.mark.parametrize("elsewhere", ["http://one/plain.bin", "file:///etc/passwd", "ftp://one/x"])
def test_nothing_but_https_is_spoken(tmp_path, network, elsewhere):
    network.served |= {"https://one/file.bin": elsewhere, "https://one/plain.bin": CONTENT}
    for url in ("https://one/file.bin", elsewhere):
        with pytest.raises(download.NETWORK_ERRORS):
            download.download(FILE, url, tmp_path)
    network.served |= {"https://one/file.bin": "https://two/x", "https://two/x": CONTENT}
    assert download.download(FILE, "https://one/file.bin", tmp_path).read_bytes() == CONTENT


def test_certificates_are_checked():
    context = download.https()._context
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="expected one of mnist, fashion_mnist, cifar10"):
        cache.fetch("imagenet")
