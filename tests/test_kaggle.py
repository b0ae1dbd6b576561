"The real `kaggle` command pushes every kernel to a stub on this machine."
import json, os, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from conftest import ROOT

KERNELS = sorted(p.parent for p in (ROOT/'kaggle').glob('*/kernel-metadata.json'))


@pytest.fixture(scope='module')
def stub():
    "A loopback server that remembers what was posted and answers as Kaggle does."
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append((self.path, json.loads(self.rfile.read(int(self.headers['Content-Length'])) or b'{}')))
            answer = dict(ref='/alice/kernel', url='https://www.kaggle.com/code/alice/kernel', versionNumber=1)
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *_): pass

    server = HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, posted
    server.shutdown()


def test_there_is_a_kernel_for_every_chapter():
    assert [k.name for k in KERNELS] == ['00_sampling', '01_dataset', '02_train', '03_eval', '04_serve']


def sources(notebook): return [''.join(c['source']) for c in notebook['cells']]


@pytest.mark.parametrize('kernel', KERNELS, ids=lambda p: p.name)
def test_push(kernel, stub, tmp_path):
    port, posted = stub
    posted.clear()
    env = os.environ | dict(KAGGLE_API_ENVIRONMENT='LOCALHOST', KAGGLE_USERNAME='alice', KAGGLE_KEY='k',
                            http_proxy=f'http://127.0.0.1:{port}', no_proxy='', HOME=str(tmp_path))
    command = [Path(sys.executable).parent/'kaggle', 'kernels', 'push', '-p', kernel]
    r = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert 'successfully pushed' in r.stdout, r.stdout + r.stderr # the exit code is 0 even when it failed
    body = next(b for p, b in posted if p.endswith('SaveKernel'))
    assert body['slug'].endswith(f"vlmtemporal-{kernel.name.replace('_', '-')}")
    assert body['isPrivate'] and body['enableInternet']
    notebook = json.loads(body['text'])
    assert notebook['metadata']['kernelspec']['name'] == 'python3'
    assert not any(c.get('outputs') for c in notebook['cells'])
    assert sources(notebook) == sources(json.loads((ROOT/'nbs'/f'{kernel.name}.ipynb').read_text()))
    if kernel.name == '02_train':
        assert body['enableGpu'] and body['machineShape'] == 'NvidiaTeslaT4'
        assert body['modelDataSources'] == ['qwen-lm/qwen2.5-vl/transformers/3b-instruct/2']
