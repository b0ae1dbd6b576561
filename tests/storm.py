"A crowd of clients, some of whom hang up, and a watch on the server meanwhile. Run as a program it is the watch."
import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


BOUNDARY = 'the-storm'


def form(video, **fields):
    "A multipart body."
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
             for name, value in fields.items()]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="video"; filename="clip.mp4"\r\n\r\n'
    return ''.join(parts).encode() + head.encode() + video + f'\r\n--{BOUNDARY}--\r\n'.encode()


def post(url, body, timeout=300):
    "(status, seconds) of one prediction."
    begin, where = time.perf_counter(), urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=timeout)
    try:
        with suppress(BrokenPipeError, ConnectionResetError): # an answer may come before all has been sent
            connection.request('POST', '/predict', body, {'Content-Type': f'multipart/form-data; boundary={BOUNDARY}'})
        answer = connection.getresponse()
        answer.read()
        return answer.status, time.perf_counter() - begin
    finally: connection.close()


def hang_up(url, body, chance):
    "Begin a prediction, and leave at a random moment of the upload or of the wait."
    where = urlsplit(url)
    with suppress(OSError), socket.create_connection((where.hostname, where.port), 30) as s:
        head = (f'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n'
                f'Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n')
        s.sendall(head.encode() + body[:int(len(body)*min(1, 2*chance.random()))])
        time.sleep(2*chance.random())


def watch(url, path, pause):
    "Seconds that each look at a path takes, a line each, until the process is ended."
    where = urlsplit(url)
    while True:
        begin = time.perf_counter()
        try:
            connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
            connection.request('GET', path)
            status = connection.getresponse().status
            connection.close()
        except OSError: status = 0
        print(json.dumps([status, time.perf_counter() - begin]), flush=True)
        time.sleep(pause)


def family(pid):
    "A process and all below it."
    pids = [pid]
    for folder in Path('/proc').glob('[0-9]*'):
        with suppress(OSError, ValueError):
            parent = int((folder/'stat').read_text().rsplit(')', 1)[1].split()[1])
            if parent == pid: pids += family(int(folder.name))
    return pids


def memory(pid):
    "Bytes that a process holds."
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')


def descriptors(pid): return len(list(Path(f'/proc/{pid}/fd').iterdir()))


@dataclass
class Weather:
    "What the crowd saw."
    statuses: list = field(default_factory=list) # of those who stayed
    seconds: list = field(default_factory=list)  # of those who were answered
    refused: list = field(default_factory=list)  # seconds until a 503
    looks: list = field(default_factory=list)    # seconds of each look at the server
    took: float = 0.
    def count(self, status): return self.statuses.count(status)
    def __str__(self):
        counts = {s: self.count(s) for s in sorted(set(self.statuses))}
        def p(values, share): return f'{1000*sorted(values)[int(share*(len(values) - 1))]:.0f}' if values else '-'
        return (f'{counts} in {self.took:.0f} s; answered ms p50 {p(self.seconds, .5)} p99 {p(self.seconds, .99)}; '
                f'refused ms p50 {p(self.refused, .5)} p99 {p(self.refused, .99)} max {p(self.refused, 1)}; '
                f'{len(self.looks)} looks ms p50 {p(self.looks, .5)} p99 {p(self.looks, .99)} max {p(self.looks, 1)}')


def storm(url, video, n, at_once, leaving=.2, seed=0, path='/livez', last_start=80.):
    "`n` predictions, so many at once, of which a share hangs up; each starts elsewhere in the video."
    chance, found = random.Random(seed), Weather()
    plans = [(chance.random() < leaving, random.Random(chance.random())) for _ in range(n)]
    def one(plan):
        leaves, own = plan
        start = own.uniform(0, last_start)
        body = form(video, start=f'{start:.2f}')
        if leaves: return hang_up(url, body, own)
        while True:
            status, seconds = post(url, body)
            found.statuses.append(status)
            if status != 503: break
            found.refused.append(seconds)
            time.sleep(own.uniform(.2, 1))
        if status == 200: found.seconds.append(seconds)
    begin = time.perf_counter()
    watching = subprocess.Popen([sys.executable, __file__, url, '--path', path], stdout=subprocess.PIPE, text=True)
    lines: list = []
    threading.Thread(target=lambda: lines.extend(watching.stdout), daemon=True).start()
    try:
        with ThreadPoolExecutor(at_once) as crowd: list(crowd.map(one, plans))
    finally:
        watching.kill()
        watching.wait()
    found.took = time.perf_counter() - begin
    looks = [json.loads(line) for line in lines if line.endswith('\n')]
    assert all(status == 200 for status, _ in looks), 'the server was away'
    found.looks = [seconds for _, seconds in looks]
    return found


if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('url')
    p.add_argument('--path', default='/livez')
    p.add_argument('--pause', type=float, default=.05)
    a = p.parse_args()
    watch(a.url, a.path, a.pause)
