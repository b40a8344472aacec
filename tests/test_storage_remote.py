"""Volumes behind HTTP and S3 hold the same voxels as on disk; real servers on loopback, stopped afterwards."""

from __future__ import annotations

import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bigdeconv.calibration.samples import Samples, Sampling
from bigdeconv.errors import StoreError
from bigdeconv.geometry import Box
from bigdeconv.storage.arrays import read_box, read_region, write_region
from bigdeconv.storage.ome_parsing import Channel
from bigdeconv.storage.omezarr import describe
from bigdeconv.storage.output import LevelSpec, OutputSpec, create_output
from bigdeconv.storage.validation import validate

pytestmark = pytest.mark.slow

pytest.importorskip("obstore")

SECRET = "s3cr3t-of-the-test"
BOX = Box((1, 2, 3), (3, 4, 10))  # touches some chunks of a shard only, so that byte ranges are asked for


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """One image per layout, below one folder."""
    folder = tmp_path_factory.mktemp("served")
    for name, version, shards in (("sharded", "0.5", (1, 8, 8, 8)), ("plain", "0.5", None), ("old", "0.4", None)):
        level = LevelSpec((2, 9, 10, 11), (1, 4, 4, 4), shards, (1.0, 0.5, 0.25, 0.25), (0.0,) * 4)
        spec = OutputSpec(
            axes=("c", "z", "y", "x"),
            units=(None, *["micrometer"] * 3),
            dtype="uint16",
            levels=(level,),
            ome_version=version,
            name=name,
            channels=(Channel("a"), Channel("b")),
            attributes={},
        )
        create_output(folder / f"{name}.zarr", spec)
        data = np.random.default_rng(0).integers(0, 999, level.shape).astype("uint16")
        # Channel 1 lacks its last planes: missing chunks must read as fill, not as an error.
        data[1, 8:] = 0
        write_region(folder / f"{name}.zarr", "0", (slice(None),) * 4, data)
    return folder


class RangeHandler(SimpleHTTPRequestHandler):
    """The standard handler, which knows no byte ranges, and ranges like any web server's."""

    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return super().do_GET()
        try:
            with open(self.translate_path(self.path), "rb") as file:  # noqa: PTH123
                body = file.read()
        except OSError:
            return self.send_error(404)
        first, last = wanted.groups()
        start = int(first) if first else max(len(body) - int(last), 0)
        stop = min(int(last) + 1, len(body)) if first and last else len(body)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(body[start:stop])
        return None

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # 5 drop connections when a box of many chunks is asked for, and each waits a second


@pytest.fixture(scope="module")
def http_url(volumes):
    server = Server(("127.0.0.1", 0), partial(RangeHandler, directory=str(volumes)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port, process):
    for _ in range(300):
        assert process.poll() is None, "the S3 server did not start"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the S3 server does not answer")


@pytest.fixture(scope="module")
def s3_endpoint(volumes):
    pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    port = _free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        endpoint = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="key",
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="microscope")
        for file in volumes.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "microscope", "day 1/" + file.relative_to(volumes).as_posix())
        yield endpoint
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def s3_url(s3_endpoint, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return "s3://microscope/day 1"


@pytest.mark.parametrize("name", ["sharded", "plain", "old"])
@pytest.mark.parametrize("kind", ["http_url", "s3_url"])
def test_remote_equals_local(volumes, request, monkeypatch, kind, name):
    url = f"{request.getfixturevalue(kind)}/{name}.zarr"
    local, remote = describe(volumes / f"{name}.zarr"), describe(url + "/")
    assert remote.location == url
    assert (remote.shape, remote.chunk_shape, remote.shard_shape) == (
        local.shape,
        local.chunk_shape,
        local.shard_shape,
    )
    assert (remote.voxel_zyx_um, remote.channels, remote.name) == (local.voxel_zyx_um, local.channels, name)
    for box in (BOX, Box.of_shape(local.zyx_shape)):
        for channel in (0, 1):
            expected = read_box(local, box, channel=channel)
            np.testing.assert_array_equal(read_box(remote, box, channel=channel), expected, strict=True)
    index = (1, slice(2, 9), 3, slice(0, 5))
    np.testing.assert_array_equal(read_region(url, "0", index), read_region(local.location, "0", index), strict=True)
    # ome-zarr would read it by fsspec, with credentials of its own, and ask for twice the files.
    monkeypatch.setattr("bigdeconv.storage.validation.reader_problems", None)
    assert validate(url, deep=True) == []


def test_no_credentials_in_what_travels(s3_url):
    info = describe(f"{s3_url}/sharded.zarr")
    read_box(info, BOX)
    assert SECRET.encode() not in pickle.dumps(info)
    assert SECRET not in repr(info)


@pytest.mark.parametrize("kind", ["http_url", "s3_url"])
def test_missing_remote_images_are_reported(request, kind):
    with pytest.raises(StoreError, match="there is no zarr group"):
        describe(f"{request.getfixturevalue(kind)}/nothing.zarr")


def test_wrong_bucket_is_reported_in_one_line(s3_url):
    with pytest.raises(StoreError, match=r"s3://nobody/x\.zarr is not an OME-Zarr image") as caught:
        describe("s3://nobody/x.zarr")
    assert "\n" not in str(caught.value)


def test_unreachable_server_is_reported_in_one_line():
    with pytest.raises(StoreError, match="check the address and the credentials in the environment") as caught:
        describe(f"http://127.0.0.1:{_free_port()}/x.zarr")
    assert "\n" not in str(caught.value)


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=re.escape("pip install 'bigdeconv[cloud]'")):
        describe("s3://microscope/x.zarr")


def test_a_remote_volume_that_changed_is_refused(http_url, volumes):
    from dataclasses import replace

    info = describe(f"{http_url}/plain.zarr")
    with pytest.raises(StoreError, match="describe it again"):
        read_box(replace(info, shape=(2, 9, 10, 12)), BOX)


@pytest.fixture
def flaky_url(volumes):
    """Address of a server that answers for a chunk wrongly the first time, and then as it should."""
    asked: set[str] = set()

    class Flaky(RangeHandler):
        fault = "absent"

        def do_GET(self):
            is_chunk = "/c/" in self.path
            if is_chunk and self.path not in asked:
                asked.add(self.path)
                if Flaky.fault == "absent":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", "30")
                self.end_headers()
                self.wfile.write(b"<html>log in</html>" if Flaky.fault == "page" else b"cut")
                self.close_connection = True
                return
            super().do_GET()

    server = Server(("127.0.0.1", 0), partial(Flaky, directory=volumes))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Flaky
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["absent", "cut off", "page"])
def test_a_wrong_answer_is_asked_for_again_before_anything_rests_on_it(volumes, flaky_url, fault, monkeypatch):
    url, handler = flaky_url
    handler.fault = fault
    monkeypatch.setattr("bigdeconv.storage.patience.PAUSES_SECONDS", (0.05, 0.05, 0.05))

    def samples(location):
        sampling = Sampling(((describe(location), (0,)),), channel=0, view_axis=None, n_views=1)
        return Samples.read(sampling)

    # Channel 0 has no fill: an absent chunk cannot be meant.
    found, expected = samples(f"{url}/plain.zarr"), samples(volumes / "plain.zarr")
    assert len(found.counts) == len(expected.counts)
    for one, other in zip(found.counts, expected.counts, strict=True):
        np.testing.assert_array_equal(one, other)
