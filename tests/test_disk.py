"A disk that is full, a quota, a folder that is read-only: one sentence, nothing half-written, what was there is kept."
import errno, json, os, resource, shutil, subprocess, sys, tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from null_server import NullEngine
from vlmtemporal import api, intake, publishing
from vlmtemporal.adapters import Adapter, Calibration
from vlmtemporal.basics import CannotWrite, Picture, VLMTemporalError, atomic_dir, file_hash, hold_alone, write_json
from vlmtemporal.inspection import export_llava, write_samples
from vlmtemporal.publishing import merge
from vlmtemporal.scores import save_scores
from vlmtemporal.train import fit
from vlmtemporal.trainer import TrainConfig
from vlmtemporal.twin import make_twin
from vlmtemporal.video import normalise, open_video

SHORT = TrainConfig(max_steps=2, save_steps=1, micro_batch=1, accumulation=1, learning_rate=2e-3, warmup=0)


def tree(folder): return {str(p.relative_to(folder)): file_hash(p) for p in sorted(folder.rglob('*')) if p.is_file()}


class Disk:
    "A folder that can be full: a small tmpfs where one may be mounted, else a limit on the size of files."
    def __init__(self, path): self.path, self.mounted = path, False
    def mount(self):
        command = ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', self.path]
        self.mounted = subprocess.run(command, capture_output=True).returncode == 0
    @contextmanager
    def full(self, room=0):
        filler, before = self.path/'filler', resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.mounted:
            with suppress(OSError), open(filler, 'wb', buffering=0) as f:
                while True: f.write(bytes(1 << 12))
            os.truncate(filler, max(filler.stat().st_size - room, 0))
        else: resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 1), before[1]))
        try: yield
        finally:
            filler.unlink(missing_ok=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=['tmpfs', 'limit'])
def disk(request, tmp_path):
    d = Disk(tmp_path/'disk')
    d.path.mkdir()
    if request.param == 'tmpfs':
        d.mount()
        if not d.mounted: pytest.skip('no tmpfs may be mounted here')
    yield d
    if d.mounted: subprocess.run(['umount', d.path])


def one_sentence(text, *words):
    return '\n' not in text and text.count('cannot be written') == 1 and all(w in text for w in words)


@pytest.fixture(scope='module')
def run(shards, tmp_path_factory):
    "A finished run, which is not touched."
    out = tmp_path_factory.mktemp('disk')/'run'
    fit(shards, out, config=SHORT)
    return out


def test_the_adapter_and_what_was_trained(run, shards, disk):
    "The last step is done and the adapter finds no room: the checkpoints are there, and the run can end later."
    out = disk.path/'run'
    shutil.copytree(run, out)
    shutil.rmtree(out/'adapter')
    before = tree(out)
    with disk.full(), pytest.raises(CannotWrite) as e: fit(shards, out, config=SHORT, resume=True)
    assert one_sentence(str(e.value), str(out)), e.value
    assert tree(out) == before and not list(out.glob('.*'))
    assert fit(shards, out, config=SHORT, resume=True).finished
    assert file_hash(out/'adapter'/'adapter_model.safetensors') == file_hash(run/'adapter'/'adapter_model.safetensors')


def test_a_checkpoint(run, shards, disk):
    "Room for the weights, none for the optimizer: the one before stays, and no library's own words are quoted."
    out = disk.path/'run'
    shutil.copytree(run, out)
    for gone in (out/'adapter', out/'checkpoints'/'checkpoint-2'): shutil.rmtree(gone)
    before = tree(out/'checkpoints')
    with disk.full(2_500_000), pytest.raises(VLMTemporalError) as e: fit(shards, out, config=SHORT, resume=True)
    said = str(e.value)
    assert one_sentence(said, 'checkpoint-2: ', 'checkpoint-1 is untouched', 'make room'), said
    assert 'enforce' not in said, said
    assert tree(out/'checkpoints') == before and not (out/'checkpoints'/'checkpoint-2').exists()
    assert fit(shards, out, config=SHORT, resume=True).resumed_from == 1


def test_only_the_weights_find_no_room(run, shards, tmp_path):
    "As above, with room for small files."
    out = tmp_path/'run'
    shutil.copytree(run, out)
    shutil.rmtree(out/'adapter')
    before, limit = tree(out), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(CannotWrite) as e: fit(shards, out, config=SHORT, resume=True)
        with pytest.raises(CannotWrite) as m: merge('tiny', tmp_path/'merged')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert one_sentence(str(e.value), f'{out/"adapter"}: ') and one_sentence(str(m.value), f'{tmp_path/"merged"}: ')
    assert tree(out) == before and sorted(p.name for p in tmp_path.iterdir()) == ['run']


def test_commands_say_it_in_one_line(cli, disk, video):
    with disk.full():
        said = [cli('merge', 'tiny', disk.path/'merged'),
                cli('sample', video, '--plot', disk.path/'scores.png')]
    for code, text, err in said:
        assert code == 1 and not text and err.startswith('error: ') and err.count('\n') == 1, err
        assert one_sentence(err.strip(), str(disk.path)), err
    assert not list(disk.path.iterdir())


WRITERS = dict(
    merged=lambda out, mock, shards, video: merge('tiny', out/'merged'),
    samples=lambda out, mock, shards, video: write_samples(shards, out/'samples', 2),
    export=lambda out, mock, shards, video: export_llava(shards, out/'export'),
    video=lambda out, mock, shards, video: normalise(video, out/'small.mp4', size=(64, 64)),
    scores=lambda out, mock, shards, video: save_scores(out, open_video(video), 'entropy', None, np.zeros(10**5, 'f4')),
    picture=lambda out, mock, shards, video: Picture(np.zeros((64, 64, 3), np.uint8)).save(out/'black.png'),
    calibration=lambda out, mock, shards, video: _adapter(out).save_calibration(Calibration(1.5)))


def _adapter(out): return Adapter(out, 'tiny', '0', Adapter.load('tiny').spec)


@pytest.mark.parametrize('what', sorted(WRITERS))
def test_whatever_is_written(what, disk, mock, shards, video):
    "Whole or absent, and one sentence that names the place."
    with disk.full(), pytest.raises(CannotWrite) as e: WRITERS[what](disk.path, mock, shards, video)
    assert one_sentence(str(e.value), str(disk.path)), e.value
    assert isinstance(e.value, OSError) and not list(disk.path.iterdir()), list(disk.path.iterdir())


@pytest.mark.parametrize('frames', [False, True])
def test_a_twin_is_not_half_a_twin(frames, disk, tmp_path):
    "Neither a video nor a picture of it is cut short; the same command goes on."
    small = dict(subjects=1, boxes=1, frames=frames, size=(64, 64))
    make_twin(disk.path/'twin', **small, only=[])
    whole = tree(disk.path/'twin')
    shutil.rmtree(disk.path/'twin'/'U0101')
    with disk.full(), pytest.raises(CannotWrite) as e: make_twin(disk.path/'twin', **small)
    assert one_sentence(str(e.value), str(disk.path)), e.value
    assert not [p for p in (disk.path/'twin').rglob('*') if p.is_file() and p.name != 'twin.json']
    make_twin(disk.path/'twin', **small)
    assert tree(disk.path/'twin') == whole


def test_what_is_published_finds_no_room_in_the_temporary_folder(disk, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_abc')
    monkeypatch.setattr(publishing.tempfile, 'tempdir', str(disk.path))
    with disk.full(), pytest.raises(CannotWrite) as e: publishing.publish('tiny', 'alice/packing')
    assert one_sentence(str(e.value), str(disk.path)) and not list(disk.path.iterdir())


@pytest.mark.parametrize('code', ['ENOSPC', 'EDQUOT', 'EROFS', 'EACCES'])
def test_every_way_of_refusing(code, tmp_path, monkeypatch):
    "Wherever the system says no: while a folder is made, a file is begun, written, or renamed."
    number = getattr(errno, code)
    write_json(tmp_path/'a'/'b.json', 1)
    def no(path, *_, **__): raise OSError(number, os.strerror(number), str(path))
    def write(): write_json(tmp_path/'new'/'b.json', 2)
    def over():
        with atomic_dir(tmp_path/'a') as folder: write_json(folder/'b.json', 2)
    for module, name, act in ((Path, 'mkdir', write), (os, 'replace', over), (os, 'fsync', over)):
        with monkeypatch.context() as m:
            def refuse(first, *args, **kwargs): no(first if not isinstance(first, int) else tmp_path/'a')
            m.setattr(module, name, refuse)
            with pytest.raises(CannotWrite) as e: act()
        assert one_sentence(str(e.value), str(tmp_path)) and '/.' not in str(e.value), e.value
        assert json.loads((tmp_path/'a'/'b.json').read_text()) == 1
        assert [p.name for p in tmp_path.iterdir()] in (['a'], ['a', 'new'], ['new', 'a'])
        assert not list(tmp_path.rglob('.*'))


def test_a_file_that_may_not_be_read_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(PermissionError), atomic_dir(tmp_path/'out'):
        raise PermissionError(errno.EACCES, 'Permission denied', str(tmp_path/'video.mp4'))
    with pytest.raises(VLMTemporalError, match='^mine$'), atomic_dir(tmp_path/'out'): raise VLMTemporalError('mine')


def test_a_picture_that_finds_no_room_is_missed(tmp_path):
    "OpenCV writes nothing and says nothing."
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1])) # enough for all but pictures
    try:
        with pytest.raises(CannotWrite): make_twin(tmp_path/'twin', subjects=1, boxes=1, frames=True, size=(320, 240))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path/'twin').rglob('*.jpg')) and not list((tmp_path/'twin').rglob('*.csv'))


@pytest.mark.parametrize('where', ['the form is read', 'the file is copied', 'the folder is made'])
def test_an_upload(where, monkeypatch, tmp_path):
    "The server has no room: that is no fault of the client's, and no 500."
    folder = intake.ServerFolder(tmp_path)
    def full(*_, **__): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if where == 'the form is read': monkeypatch.setattr(tempfile.SpooledTemporaryFile, 'write', full)
    if where == 'the file is copied': monkeypatch.setattr(api.shutil, 'copyfileobj', full)
    if where == 'the folder is made': monkeypatch.setattr(intake.tempfile, 'mkdtemp', full)
    client = TestClient(api.create_app(NullEngine(), folder=folder))
    answer = client.post('/predict', files=dict(video=('clip.mp4', b'0'*100)))
    assert answer.status_code == 507 and answer.json()['detail'].startswith('the server has no room'), answer.text


def test_there_is_one_lock_for_all(tmp_path):
    "Held by a process, free when that ends, however it ends; nothing else in the package asks the system for one."
    (path := tmp_path/'file').touch()
    script = f'f = open({str(path)!r}); print(hold_alone(f), flush=True); input()'
    script = f'from vlmtemporal.basics import hold_alone\n{script}'
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, '-c', script], **pipes) as p:
        assert p.stdout.readline() == 'True\n'
        with open(path) as f:
            assert not hold_alone(f)
            p.kill()
            p.wait()
            assert hold_alone(f)
    asking = [p.name for p in Path(api.__file__).parent.glob('*.py') if 'flock' in p.read_text()]
    assert asking == ['basics.py']
