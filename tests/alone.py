"What stands for a package index where there is none: every installed package but this one."
import os, shutil, socket, sys, time, urllib.error, urllib.request
from importlib.metadata import distributions
from pathlib import Path


def _linked(source: str, to: str):
    try: os.link(source, to)
    except OSError: shutil.copy2(source, to)


def _bring(source: Path, to: Path):
    "A link; OpenCV looks where it really lies and is confused by one, so its files are linked one by one."
    if source.name == 'cv2': shutil.copytree(source, to, copy_function=_linked)
    else: to.symlink_to(source)


def libraries(folder: Path) -> Path:
    "A folder of links to all installed packages; vlmtemporal, and what points at it, is not among them."
    folder.mkdir()
    places = dict.fromkeys(str(d.locate_file('')) for d in distributions())
    for place in filter(os.path.isdir, places):
        for name in os.listdir(place):
            ours = 'vlmtemporal' in name.lower() or name.endswith('.pth') or name in ('__pycache__', 'tests')
            if 'site-packages' in place and not ours and not (folder/name).exists():
                _bring(Path(place)/name, folder/name)
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def wait_for(url: str, process, seconds: float = 120):
    "Until the address answers; what the process said, where it ends before."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try: return urllib.request.urlopen(url, timeout=5).read()
        except (urllib.error.URLError, OSError): pass
        if process.poll() is not None: raise AssertionError(f'ended with {process.returncode}: {process.communicate()}')
        time.sleep(.2)
    process.kill()
    raise AssertionError(f'no answer from {url}: {process.communicate()}')


def environment(**more: str) -> dict[str, str]:
    "A plain one: nothing of this repository, no Hub, no proxy."
    kept = ('LANG', 'LC_ALL', 'OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'SYSTEMROOT')
    base = {k: v for k, v in os.environ.items() if k in kept}
    path = os.pathsep.join([str(Path(sys.executable).parent), '/usr/local/bin', '/usr/bin', '/bin'])
    return base | dict(PATH=path, HF_HUB_OFFLINE='1', PYTHONWARNINGS='ignore') | more
