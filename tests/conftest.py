"Shared by all tests: the repository's root, the mock data, the command line in a process of its own."
import fcntl, gc, os, shutil, signal, subprocess, tempfile, threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import forked

ROOT = Path(__file__).parent.parent

# who starts the tests in the background of a shell has Ctrl-C ignored by them and by all their children
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    "One folder for all workers of a run, in which they find what one of them has made."
    if hasattr(config, 'workerinput'): return
    os.environ[forked.WHERE] = tempfile.mkdtemp(prefix='vlmtemporal-tests-')
    os.environ['VLMTEMPORAL_TESTS_PID'] = str(os.getpid())


def pytest_unconfigure(config):
    if not hasattr(config, 'workerinput'): shutil.rmtree(os.environ[forked.WHERE], ignore_errors=True)


def pytest_collection_finish():
    "What has been imported stays: no search for garbage goes through it again, of which every training makes several."
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def mock(root): return root/'mock_data'


@pytest.fixture(scope='session')
def video(mock): return next(mock.glob('U0108/kinect/color-masked/videos/S0100/*.mp4'))


@pytest.fixture(scope='session')
def shared(root):
    "Real data for tests; no test needs it to pass."
    folder = root.parent/'shared'
    if not (folder/'openpack-sample').is_dir():
        pytest.skip('the OpenPack sample and the broken videos are not on this machine')
    return folder


@pytest.fixture(scope='session')
def cli():
    "Run `vlmtemporal` in its own process: (exit code, stdout, stderr)."
    def run(*args, **kwargs):
        begin = [forked.FRESH] if '--debug' in args else forked.started()
        command = [*begin, *map(str, args)]
        env = {**os.environ, 'NO_COLOR': '1'}
        r = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env, **kwargs)
        return r.returncode, r.stdout, r.stderr
    return run


def once(name, make):
    "A folder that one worker of a run makes, and all of them find."
    folder = Path(os.environ[forked.WHERE])/name
    with open(folder.with_name(f'{name}.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            try: make(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder


@pytest.fixture(scope='session')
def brief(mock):
    "Three people of the twin, the first 24 seconds of each: what takes a second with them takes four with the whole."
    return once('brief', lambda out: _cut_short(mock, out))


def _cut_short(mock, out):
    from vlmtemporal.video import ffmpeg
    for who in ('U0101', 'U0107', 'U0108'):
        labels, = (mock/who).rglob('S0100.csv')
        film, = (mock/who).rglob('*.mp4')
        for path in (labels, film): (out/path.relative_to(mock)).parent.mkdir(parents=True)
        cut = [ffmpeg(), '-v', 'error', '-i', film, '-t', '24', '-c', 'copy', out/film.relative_to(mock)]
        subprocess.run([*map(str, cut)], check=True)
        head, first, *rest = labels.read_text().splitlines()
        begin = _moment(first)
        rows = [r for r in rest if _moment(r, 'end') - begin < timedelta(seconds=23)]
        (out/labels.relative_to(mock)).write_text('\n'.join([head, first, *rows]) + '\n')


def _moment(row, which='start'):
    "When a segment of a label file of OpenPack's begins or ends."
    return datetime.fromisoformat(row.split(',')[6 + (which == 'end')])


@pytest.fixture(scope='session')
def shards(mock):
    "A small built data set."
    from vlmtemporal.dataset import build
    return once('shards', lambda out: build(mock, out, max_clips=24))
