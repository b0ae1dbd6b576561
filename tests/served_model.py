"""An OpenAI-compatible server around the small model, asked as the library does: `python served_model.py --port 0`.

It proves each request: pictures, words and order must be those that the library shows a model of its own.
"""
import argparse, base64, json, re, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

from vlmtemporal.clips import Answer
from vlmtemporal.decode import DECODERS
from vlmtemporal.loading import load_model
from vlmtemporal.operations import get_taxonomy
from vlmtemporal.prompts import answer_schema, answer_text, messages
from vlmtemporal.shards import Example

NAME = 'tiny-packing'


class Refuse(Exception):
    "What the server answers with a status of its own."
    def __init__(self, status, said):
        super().__init__(said)
        self.status, self.said = status, said


def picture(url):
    "The pixels, RGB, of a data: URL."
    head, _, data = url.partition(',')
    if not re.fullmatch(r'data:image/(png|jpeg);base64', head): raise Refuse(400, 'a picture must be a data: URL')
    found = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def as_chat(asked):
    "The messages as this library writes them: pictures as places, a text alone as a part."
    def part(p): return dict(type='image') if p['type'] == 'image_url' else dict(type='text', text=p['text'])
    def parts(c): return [dict(type='text', text=c)] if isinstance(c, str) else [part(p) for p in c]
    return [dict(role=m['role'], content=parts(m['content'])) for m in asked]


def example_of(asked, taxonomy):
    "The clip that messages show. Raises `Refuse` when they differ from what the library would say of it."
    chat = as_chat(asked)
    n, fps = map(int, re.search(r'\((\d+) frames at (\d+) fps', chat[0]['content'][0]['text']).groups())
    texts = [p['text'] for p in chat[-1]['content'] if 'text' in p]
    indices = np.array([int(m[1]) for t in texts if (m := re.match(r'Frame (-?\d+) \(', t))])
    frames = np.stack([picture(p['image_url']['url']) for p in asked[-1]['content'] if p['type'] == 'image_url'])
    if chat != messages(indices, taxonomy, n, fps): raise Refuse(400, 'other words than the library has')
    return Example('served', frames, indices, None, 'served', 0., n, fps=fps)


def counted(example, taxonomy):
    "An answer that depends on every pixel and every index."
    n, names = int(example.frames.sum()) + int(example.indices.sum()), taxonomy.names
    return Answer(names[n % len(names)], n % 60, 60 + n % 60, names[n//7 % len(names)], 0.)


class Server(ThreadingHTTPServer):
    """What it `can`: 'json_schema', 'json_object', 'text', though it `ignores` what it is asked; `sees`: pictures, too;
    `unknown`: settings that it refuses. Without a model it says of each clip what its pixels add up to."""
    daemon_threads = True
    def __init__(self, loaded, taxonomy='logistics', can=('json_schema', 'json_object', 'text'), sees=True, key=None,
                 port=0, name=NAME, ignores=False, unknown=()):
        super().__init__(('127.0.0.1', port), Handler)
        self.loaded, self.taxonomy, self.can, self.sees, self.key = loaded, get_taxonomy(taxonomy), can, sees, key
        self.name, self.ignores, self.unknown = name, ignores, unknown
        self.faults, self.asked, self.model_lock, self.lock = [], [], threading.Lock(), threading.Lock()
        self.busy = self.most_busy = 0
    @property
    def url(self): return f'http://127.0.0.1:{self.server_address[1]}/v1'
    def handle_error(self, request, client_address): pass # a client that has hung up
    def fault(self):
        "What the next request with pictures meets instead of an answer."
        with self.lock: return self.faults.pop(0) if self.faults else None
    def answer(self, body):
        "The text of an answer."
        if odd := next((n for n in self.unknown if n in body), None):
            raise Refuse(400, f"Unsupported parameter: '{odd}' is not supported with this model.")
        if body.get('model') != self.name: raise Refuse(404, f'The model `{body.get("model")}` does not exist.')
        wanted = dict(type='text') if self.ignores else body.get('response_format', dict(type='text'))
        if wanted['type'] not in self.can: raise Refuse(400, f'response_format {wanted["type"]} is not supported')
        schema = wanted.get('json_schema', {}).get('schema')
        if not any(isinstance(m['content'], list) for m in body['messages']): return self.short(wanted['type'], schema)
        if not self.sees: raise Refuse(400, 'this model takes no pictures')
        return self.told(example_of(body['messages'], self.taxonomy), schema)
    def short(self, kind, schema):
        "A text that shows nothing: whatever the schema allows first."
        if kind == 'text': return 'Hello.'
        return json.dumps({k: p['enum'][0] for k, p in schema['properties'].items()} if schema else {})
    def told(self, example, schema):
        if schema not in (None, answer_schema(self.taxonomy, example.n_frames)): raise Refuse(400, 'another schema')
        if self.loaded is None: return answer_text(counted(example, self.taxonomy))
        with self.model_lock:
            found, = DECODERS['constrained' if schema else 'generate'](self.loaded, [example], self.taxonomy)
        return answer_text(found.answer) if schema else found.text


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass
    def send(self, status, value, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {'Content-Type': 'application/json', 'Content-Length': len(data), **headers}.items():
            self.send_header(name.replace('_', '-'), str(text))
        self.end_headers()
        self.wfile.write(data)
    def refused(self):
        "Is there a key, and another one was sent?"
        if not self.server.key or self.headers.get('Authorization') == f'Bearer {self.server.key}': return False
        self.send(401, dict(error=dict(message=f'Incorrect API key provided: {self.headers.get("Authorization")}')))
        return True
    def do_GET(self):
        if self.refused(): return
        if self.path != '/v1/models': return self.send(404, dict(error=dict(message='no such page')))
        self.send(200, dict(object='list', data=[dict(id=self.server.name, object='model')]))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        if self.refused(): return
        self.body = body
        shows = any(isinstance(m['content'], list) for m in body['messages'])
        self.server.asked.append((shows, body, dict(self.headers)))
        if shows and (fault := self.server.fault()): return fault(self)
        with self.server.lock:
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        try: self.complete(body)
        finally:
            with self.server.lock: self.server.busy -= 1
    def complete(self, body):
        try: text = self.server.answer(body)
        except Refuse as e: return self.send(e.status, dict(error=dict(message=e.said)))
        choice = dict(index=0, message=dict(role='assistant', content=text), finish_reason='stop')
        self.send(200, dict(object='chat.completion', model=self.server.name, choices=[choice],
                            usage=dict(prompt_tokens=1, completion_tokens=1)))


@contextmanager
def serving(
    loaded=True, # a `LoadedModel`; True: the small one; None: a server that counts pixels
    **options,
):
    "A server that answers while the body runs."
    server = Server(load_model('tiny', 'tiny') if loaded is True else loaded, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
    thread.start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()


def main():
    options = argparse.ArgumentParser()
    options.add_argument('--port', type=int, default=8000)
    server = Server(load_model('tiny', 'tiny'), port=options.parse_args().port)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == '__main__': main()
