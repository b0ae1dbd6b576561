"Worker processes that cannot begin, that are killed, and that are told to end: what is said, and what is left."
import os, signal, subprocess, sys, time

import pytest

from vlmtemporal.basics import BadInput

CALL = 'print(spread(job, [(1,), (2,)], 2, "counting", 2))'
GUARDED = f"if __name__ == '__main__':\n    {CALL}"
REMEDY = "below `if __name__ == '__main__':`"


def script(folder, call, body='return n', top=''):
    path = folder/'script.py'
    path.write_text(f'import os, time\nfrom pathlib import Path\nfrom vlmtemporal.workers import spread\n{top}\n'
                    f'def job(n, done):\n    {body}\n\n{call}\n')
    return path


def begun(path, *options):
    return subprocess.Popen([sys.executable, *options, path], cwd=path.parent, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_script_that_every_worker_would_run_again(tmp_path):
    "It is told before a process is started, and what to write instead; with that it runs."
    top = 'import logging; log = logging.getLogger(__name__); print("once")'
    out, err = (process := begun(script(tmp_path, CALL, top=top))).communicate(timeout=120)
    assert process.returncode == 1 and out == 'once\n' and err.splitlines()[-1].startswith('vlmtemporal.basics.Bad')
    assert 'script.py: would be run again by each worker process; ' in err and REMEDY in err
    assert 'memory' not in err and 'bootstrapping' not in err
    out, err = begun(script(tmp_path, GUARDED)).communicate(timeout=120)
    assert out == '[1, 2]\n' and not err


def test_what_is_not_read_beforehand(tmp_path):
    "A module that runs for `python -m`: its workers die of what it does, and it hears why."
    script(tmp_path, CALL)
    process = subprocess.run([sys.executable, '-m', 'script'], cwd=tmp_path, text=True, capture_output=True)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1 and 'no worker process could begin' in last and REMEDY in last, process.stderr
    assert 'memory' not in last


def test_loaders_that_would_train_again(tmp_path, monkeypatch):
    "The processes that read ahead for a GPU: forked ones do not run the script, others would."
    from vlmtemporal import trainer
    main = type(sys)('__main__')
    main.__file__ = str(script(tmp_path, 'fit()'))
    monkeypatch.setitem(sys.modules, '__main__', main)
    assert trainer._loader(True, 4)['dataloader_num_workers'] == 2
    monkeypatch.setattr(trainer, 'get_start_method', lambda: 'forkserver')
    with pytest.raises(BadInput, match='script.py: would be run again by each worker process'): trainer._loader(True, 4)
    assert trainer._loader(False, 4)['dataloader_num_workers'] == 0
    script(tmp_path, GUARDED)
    assert trainer._loader(True, 4)['dataloader_num_workers'] == 2


def test_a_worker_that_is_killed_at_work(tmp_path):
    "Nothing is wrong with the script then."
    for end in ('os.kill(os.getpid(), 9)', 'os._exit(1)'):
        err = begun(script(tmp_path, GUARDED, end)).communicate(timeout=120)[1]
        assert 'killed, perhaps for want of memory' in err.splitlines()[-1] and REMEDY not in err


@pytest.mark.parametrize('everybody', (False, True))
def test_told_to_end(tmp_path, everybody):
    "SIGTERM, to the first process alone or to all: it ends soon, says nothing, and no process of it is left."
    work = "Path(f'pid{n}').write_text(str(os.getpid()))\n    while True:\n        time.sleep(.05)\n        done(0)"
    process, pids = begun(script(tmp_path, GUARDED, work)), [tmp_path/'pid1', tmp_path/'pid2']
    until(lambda: all(p.exists() and p.read_text() for p in pids))
    (os.killpg if everybody else os.kill)(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + signal.SIGTERM, '', '')
    until(lambda: not any(os.path.exists(f'/proc/{p.read_text()}') for p in pids))


def test_work_that_does_not_listen_is_ended(tmp_path):
    "A job that tells of nothing for long."
    work = "Path(f'pid{n}').write_text(str(os.getpid()))\n    time.sleep(600)"
    process, pids = begun(script(tmp_path, GUARDED, work)), [tmp_path/'pid1', tmp_path/'pid2']
    until(lambda: all(p.exists() and p.read_text() for p in pids))
    process.terminate()
    assert process.communicate(timeout=60) == ('', '') and process.returncode == 128 + signal.SIGTERM


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(.05)
