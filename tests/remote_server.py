"A web server in a bad way, and a bucket on this machine."
import os, re, socket, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest


class Handler(BaseHTTPRequestHandler):
    "Files of a folder; what is wrong with the server stands in `server.ways`."
    def log_message(self, *args): pass

    def do_GET(self):
        ways, path = self.server.ways, self.server.folder/unquote(self.path.partition('?')[0]).lstrip('/')
        self.server.asked.append((self.path, self.headers.get('Range')))
        n = len(self.server.asked)
        if 'busy' in ways and n % 2: return self.send_error(503)
        if not path.is_file(): return self.send_error(404)
        data = path.read_bytes()
        part = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        tag = f'"{path.stat().st_mtime_ns}"'
        if 'no ranges' in ways or self.headers.get('If-Range', tag) != tag: part = None
        begin, end = (int(part[1]), int(part[2] or len(data) - 1) + 1) if part else (0, len(data))
        self.send_response(206 if part else 200)
        self.send_header('Content-Length', str(min(end, len(data)) - begin))
        if part: self.send_header('Content-Range', f'bytes {begin}-{min(end, len(data)) - 1}/{len(data)}')
        self.send_header('ETag', tag)
        self.end_headers()
        data = data[begin:end]
        drops = len(data) > 1000 and ('drops' in ways or ('drops twice' in ways and self.server.dropped < 2))
        if drops:
            self.server.dropped += 1
            data = data[:max(len(data)//2, 1000)]
        if 'slow' in ways:
            for i in range(0, len(data), 1 + len(data)//5):
                self.wfile.write(data[i:i + 1 + len(data)//5])
                self.wfile.flush()
                time.sleep(.02)
        else: self.wfile.write(data)
        if drops:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


class Served:
    "A folder behind a web server."
    def __init__(self, folder, *ways):
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.folder, self.server.ways, self.server.asked, self.server.dropped = Path(folder), ways, [], 0
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
    @property
    def asked(self): return self.server.asked
    def __enter__(self): return self
    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def _free():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def bucket(name):
    "Start an S3 server with one bucket; its process, and the environment that leads to it."
    port = _free()
    process = subprocess.Popen([Path(sys.executable).parent/'moto_server', '-H', '127.0.0.1', '-p', str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    env = dict(AWS_ENDPOINT_URL=f'http://127.0.0.1:{port}', AWS_ACCESS_KEY_ID='me', AWS_SECRET_ACCESS_KEY='secret',
               AWS_DEFAULT_REGION='us-east-1')
    os.environ.update(env)
    end = time.monotonic() + 60
    while True:
        try: socket.create_connection(('127.0.0.1', port), 1).close()
        except OSError:
            assert time.monotonic() < end and process.poll() is None, 'the S3 server does not start'
            time.sleep(.1)
        else: break
    import s3fs
    s3fs.S3FileSystem().mkdir(name)
    return process


@pytest.fixture(scope='module')
def s3():
    "The URL of a bucket."
    before = dict(os.environ)
    process = bucket('data')
    yield 's3://data'
    process.kill()
    process.wait()
    os.environ.clear()
    os.environ.update(before)
