"Kaggle on this machine, as far as its client can tell: data sets, kernels with versions, logs, outputs, and faults."
from __future__ import annotations

import io, json, re, threading, zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

LOCALHOST = 'http://localhost' # what the client calls when it is told to stay here; it comes through the proxy


@dataclass
class Version:
    "One push of a kernel."
    body: dict
    status: list[str] = field(default_factory=lambda: ['QUEUED', 'RUNNING', 'COMPLETE']) # one for each look at it
    log: list[str] = field(default_factory=list)
    output: dict[str, bytes] = field(default_factory=dict)
    message: str = ''
    def look(self) -> str: return self.status.pop(0) if len(self.status) > 1 else self.status[0]


@dataclass
class DataSet:
    "The files of its newest version, as they lie when it is attached."
    body: dict
    files: dict[str, bytes]
    version: int = 1
    looks: int = 1 # until it is ready


class Kaggle:
    "What the server knows. `run` says what a pushed version does; `faults` happen once each, at a call of that name."
    def __init__(self):
        self.datasets: dict[str, DataSet] = {}
        self.kernels: dict[str, list[Version]] = {}
        self.blobs: dict[str, tuple[str, bytes]] = {}
        self.posted: list[tuple[str, dict]] = []
        self.run: Callable[[Kaggle, str, Version], None] = lambda kaggle, kernel, version: None
        self.faults: list[tuple[str, object]] = []
        self.models = {'qwen-lm/qwen2.5-vl/transformers/3b-instruct/2'}
        self.logs_broken = 0
    def calls(self, name: str) -> list[dict]: return [body for call, body in self.posted if call == name]
    def fault(self, name: str) -> object:
        "What goes wrong with this call."
        at = next((i for i, (call, _) in enumerate(self.faults) if call == name), None)
        return None if at is None else self.faults.pop(at)[1]

    # the calls of the client, by name
    def GetDataset(self, d):
        found = self.datasets.get(f"{d['ownerSlug']}/{d['datasetSlug']}")
        return found and dict(isPrivate=found.body.get('isPrivate', True), currentVersionNumber=found.version)
    def GetDatasetStatus(self, d):
        found = self.datasets.get(f"{d['ownerSlug']}/{d['datasetSlug']}")
        if found is None: return None
        found.looks -= 1
        return dict(status='READY' if found.looks < 0 else 'BLOBS_RECEIVED')
    def ListDatasetFiles(self, d):
        names = sorted(self.datasets[f"{d['ownerSlug']}/{d['datasetSlug']}"].files)
        start, size = int(d.get('pageToken') or 0), 7 # fewer than it was asked for
        more = dict(nextPageToken=str(start + size)) if start + size < len(names) else {}
        return dict(datasetFiles=[dict(name=n) for n in names[start:start + size]], **more)
    def StartBlobUpload(self, d):
        token = f'token{len(self.blobs)}'
        self.blobs[token] = d['name'], b''
        return dict(token=token, createUrl=f'{LOCALHOST}/upload/{token}?signature=s3cr3t')
    def CreateDataset(self, d):
        self.datasets[f"{d['ownerSlug']}/{d['slug']}"] = DataSet(d, self._unpacked(d))
        return dict(ref=d['slug'], url='https://www.kaggle.com/datasets', status='ok')
    def CreateDatasetVersion(self, d):
        found = self.datasets[f"{d['ownerSlug']}/{d['datasetSlug']}"]
        found.files, found.version, found.looks = self._unpacked(d['body']), found.version + 1, 1
        return dict(ref=d['datasetSlug'], status='ok')
    def _unpacked(self, d) -> dict[str, bytes]:
        "Kaggle unpacks zips."
        files = {}
        for name, data in (self.blobs[f['token']] for f in d['files']):
            if not name.endswith('.zip'): files[name] = data
            else:
                with zipfile.ZipFile(io.BytesIO(data)) as z:
                    files |= {f'{name[:-4]}/{n}': z.read(n) for n in z.namelist()}
        return files
    def GetKernel(self, d):
        found = self.kernels.get(f"{d['userName']}/{d['kernelSlug']}")
        version = self._version(d)
        if not version: return None
        body = version.body
        kinds = ('dataset', 'kernel', 'model')
        metadata = {f'{kind}DataSources': body.get(f'{kind}DataSources', []) for kind in kinds}
        return dict(metadata=dict(currentVersionNumber=len(found), **metadata), blob=dict(source=body.get('text', '')))
    def SaveKernel(self, d):
        for kind in ('dataset', 'kernel', 'model'): d.setdefault(f'{kind}DataSources', []) # empty lists are not sent
        kernel = d['slug']
        mine = self.kernels.setdefault(kernel, [])
        wrong = dict(invalidDatasetSources=[s for s in d['datasetDataSources'] if s not in self.datasets],
                     invalidKernelSources=[s for s in d['kernelDataSources'] if not self.kernels.get(s)],
                     invalidModelSources=[s for s in d['modelDataSources'] if s not in self.models])
        mine.append(Version(d))
        self.run(self, kernel, mine[-1])
        return dict(ref=kernel, url=f'https://www.kaggle.com/code/{kernel}', versionNumber=len(mine),
                    **{k: v for k, v in wrong.items() if v})
    def _number(self, d) -> int: return int(d.get('versionLabel', 'v0')[1:]) or len(self.kernels[self._kernel(d)])
    def _kernel(self, d) -> str: return f"{d['userName']}/{d['kernelSlug']}"
    def _version(self, d) -> Version | None:
        found = self.kernels.get(self._kernel(d))
        return found[self._number(d) - 1] if found and self._number(d) <= len(found) else None
    def GetKernelSessionStatus(self, d):
        found = self._version(d)
        return found and dict(status=found.look(), failureMessage=found.message)
    def ListKernelSessionOutput(self, d):
        found, start, size = self._version(d), int(d.get('pageToken') or 0), 3
        names = sorted(found.output)
        url = f'{LOCALHOST}/output/{self._kernel(d)}?signature=s3cr3t&v={self._number(d)}&n='
        files = [dict(fileName=n, url=url + n) for n in names[start:start + size]]
        more = dict(nextPageToken=str(start + size)) if start + size < len(names) else {}
        return dict(files=files, log=json.dumps([dict(data=line) for line in found.log]), **more)

    def log_of(self, path: str, query: dict) -> bytes | None:
        "The stream of a run's log; None as long as nothing runs."
        user, slug = path.split('/')[-2:]
        found = self._version(dict(userName=user, kernelSlug=slug, versionLabel=query['versionLabel'][0]))
        if not found or found.status[0] == 'QUEUED': return None
        events = [f'data: {json.dumps(dict(stream_name="stdout", data=line))}\n\n' for line in found.log]
        if self.logs_broken:
            self.logs_broken -= 1
            return ''.join(events[:1]).encode()
        return (''.join(events) + 'data: END_OF_LOG\n\n').encode()
    def lay_out(self, body: dict, folder: Path):
        "What a pushed version finds among its inputs."
        for name in body['datasetDataSources']:
            for file, data in self.datasets[name].files.items(): _write(folder/name.split('/')[1]/file, data)
        for name in body['kernelDataSources']:
            for file, data in self.kernels[name][-1 - (self.kernels[name][-1].body is body)].output.items():
                _write(folder/name.split('/')[1]/file, data)


def _write(path: Path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def files_of(folder: Path, prefix: str = '') -> dict[str, bytes]:
    "A folder as an output."
    return {prefix + p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


class Handler(BaseHTTPRequestHandler):
    kaggle: Kaggle
    def log_message(self, *_): pass
    def _answer(self, code: int, body: bytes, kind: str = 'application/json'):
        self.send_response(code)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def _body(self) -> bytes:
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''):
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        data = b''
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data
    def do_POST(self):
        name, body = urlsplit(self.path).path.split('/')[-1], json.loads(self._body() or b'{}')
        fault = self.kaggle.fault(name)
        if fault == 'drop': return self.connection.close()
        if isinstance(fault, int): return self._answer(fault, b'{}')
        self.kaggle.posted.append((name, body))
        answer = fault if isinstance(fault, dict) else getattr(self.kaggle, name)(body)
        if fault == 'lose the answer': return self.connection.close()
        if answer is None: return self._answer(404, b'{"code": 404, "message": "Not found"}')
        self._answer(200, json.dumps(answer).encode())
    def do_PUT(self):
        token = urlsplit(self.path).path.split('/')[-1]
        self.kaggle.blobs[token] = self.kaggle.blobs[token][0], self._body()
        self._answer(200, b'{}')
    def do_GET(self):
        url = urlsplit(self.path)
        if url.path.startswith('/api/v1/kernels/logs/stream/'):
            log = self.kaggle.log_of(url.path, parse_qs(url.query))
            return self._answer(404, b'{}') if log is None else self._answer(200, log, 'text/event-stream')
        version, name = re.search('v=([0-9]+)&n=(.*)', url.query).groups()
        kernel = self.kaggle.kernels[url.path.removeprefix('/output/')]
        self._answer(200, kernel[int(version) - 1].output[name], 'application/octet-stream')


def serve(kaggle: Kaggle) -> ThreadingHTTPServer:
    "Answer on a free port of this machine."
    server = ThreadingHTTPServer(('127.0.0.1', 0), type('Bound', (Handler,), dict(kaggle=kaggle)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
