"A crowd of clients, a fifth of whom hang up, beside the running model: nothing is left, nothing grows."
import os
import signal
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from forked import FRESH, Command, started
from storm import descriptors, family, form, memory, post, storm


LONG = bool(os.environ.get('VLMTEMPORAL_SERVE_CHECK'))
PATIENCE = 300 # seconds: other tests may be at work on the same cores


@contextmanager
def server(tmp, *options, begin=(FRESH,)):
    "`vlmtemporal serve` in a process of its own: (process, url)."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [*begin, 'serve', '--port', str(port), '--log', 'none', *options]
    with open(tmp/'log', 'w') as log:
        process = Command(command, stdout=log, stderr=log, env={**os.environ, 'TMPDIR': str(tmp)})
    url, deadline = f'http://127.0.0.1:{port}', time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            try: urllib.request.urlopen(f'{url}/readyz', timeout=10).read()
            except OSError: time.sleep(.3)
            else: break
            assert process.poll() is None, (tmp/'log').read_text()
        yield process, url
    finally:
        process.kill()
        process.wait()


def files(tmp):
    "What a server has on disk, without the lock and the empty folders of its own."
    return [p for p in tmp.rglob('*') if p.is_file() and p.name != 'log' and p.suffix != '.lock']


def settled(process, tmp):
    "(children, descriptors, files), as soon as they no longer change."
    deadline, found = time.monotonic() + 60, None
    while time.monotonic() < deadline:
        before, found = found, (len(family(process.pid)), descriptors(process.pid), len(files(tmp)))
        if before == found: break
        time.sleep(2)
    return found


def test_after_the_storm(video, tmp_path):
    """No file, no process, no descriptor, no memory is left; refusals and looks are quick.

    With VLMTEMPORAL_SERVE_CHECK=1: 1,000 predictions, 16 at once. On a busy machine the times are those of its other
    work, so that only the long form judges them."""
    data = video.read_bytes()
    with server(tmp_path, '--places', '12') as (process, url):
        storm(url, data, 400 if LONG else 6, 16, seed=1) # threads, arenas, what is kept of pictures
        before, held = settled(process, tmp_path), memory(process.pid)
        weather = storm(url, data, 1000 if LONG else 24, 16, seed=2)
        after, holds = settled(process, tmp_path), memory(process.pid)
        print(f'\n{weather}\nbefore and after: (processes, descriptors, files) {before} {after}, '
              f'MiB {held/2**20:.0f} {holds/2**20:.0f}')
        assert set(weather.statuses) <= {200, 503} and weather.count(200) >= (700 if LONG else 12)
        assert weather.refused, 'nobody was refused: the storm says nothing about refusals'
        assert after[2] == 0, files(tmp_path)
        assert after[0] <= before[0] and after[1] <= before[1] + 2
        assert holds < held*(1.05 if LONG else 1.25)
        if LONG:
            assert sorted(weather.refused)[int(.99*(len(weather.refused) - 1))] < .05
            assert sorted(weather.looks)[int(.99*(len(weather.looks) - 1))] < .05
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert time.monotonic() - begin < 12 and not files(tmp_path)


def test_a_stop_in_the_middle_of_the_storm(video, tmp_path):
    "SIGTERM while all places are taken: everybody is answered or told within 10 s. kill -9: the next server sweeps."
    body = form(video.read_bytes(), start='3')
    def ask(url):
        try: return post(url, body)[0]
        except OSError: return 'closed'
    for how in (signal.SIGTERM, signal.SIGKILL):
        with server(tmp_path, '--places', '4', begin=started()) as (process, url), ThreadPoolExecutor(6) as crowd:
            asked = [crowd.submit(ask, url) for _ in range(6)]
            time.sleep(1.5)
            begin = time.monotonic()
            process.send_signal(how)
            assert process.wait(60) == (0 if how == signal.SIGTERM else -how)
            took = time.monotonic() - begin
            assert took < (15 if how == signal.SIGTERM else 5)
            assert {a.result() for a in asked} <= {200, 503, 'closed'}
        if how == signal.SIGTERM: assert not files(tmp_path)
    with server(tmp_path, begin=started()) as (process, url):
        assert not files(tmp_path)
        assert ask(url) == 200
