"Shared by all tests: the repository's root, the mock data, the command line in a process of its own."
import os, shutil, signal, subprocess, tempfile, threading
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


@pytest.fixture(scope='session')
def shards(mock, tmp_path_factory):
    "A small built data set."
    from vlmtemporal.dataset import build
    out = tmp_path_factory.mktemp('data')/'shards'
    build(mock, out, max_clips=24)
    return out
