"A tower's file: whole under kills, shared by processes, refused by the system; and runs in which only time changes."
import errno, json, multiprocessing, os, random, resource, signal, subprocess, time, warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forked import Command, started
from vlmtemporal import tower_file, trainer
from vlmtemporal.basics import VLMTemporalWarning, file_hash
from vlmtemporal.checkpoints import last_checkpoint
from vlmtemporal.dataset import build
from vlmtemporal.tower_file import TowerFile, TowerMemory
from vlmtemporal.train import fit
from vlmtemporal.trainer import TrainConfig

ROWS, SIZE = 12, 200_000
FORK = multiprocessing.get_context('fork')
CONFIG = TrainConfig(max_steps=10, save_steps=3, micro_batch=2, accumulation=1, learning_rate=2e-3, tower_cache=0.)


def outputs(seed: int) -> list[tuple]:
    g = torch.Generator().manual_seed(seed)
    return [('pooler_output', torch.randn(300 - seed, 256, generator=g).half()),
            ('deepstack_features', torch.randn(5, 8, generator=g).bfloat16())]


OUTPUTS = [outputs(i) for i in range(2*ROWS)]


def opened(path: Path, **other) -> TowerFile:
    return TowerFile(**dict(path=path, rows=ROWS, size=SIZE, fingerprint='a', most=1e8) | other)


def same(found: list | None, parts: list) -> bool:
    return found is not None and all(a == b and x.equal(y) for (a, x), (b, y) in zip(found, parts, strict=True))


def _overwrite(path: Path):
    "Fill the slots again and again, with two outputs in turn."
    file = opened(path)
    for i in range(10**6): file.write(i % ROWS, f'{i % (2*ROWS)}', OUTPUTS[i % (2*ROWS)])


def test_a_slot_is_whole_or_empty_whenever_the_process_is_killed(tmp_path):
    draw, whole = random.Random(0), 0
    for _ in range(12):
        process = FORK.Process(target=_overwrite, args=(tmp_path/'tower.bin',))
        process.start()
        time.sleep(draw.uniform(.02, .2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with warnings.catch_warnings():
            warnings.simplefilter('error') # nothing is damaged
            file = opened(tmp_path/'tower.bin')
            for row in range(ROWS):
                found = [file.read(row, f'{i}') for i in (row, row + ROWS)]
                assert not all(found)
                for i, parts in zip((row, row + ROWS), found): assert parts is None or same(parts, OUTPUTS[i])
                whole += any(found)
    assert whole > 5*ROWS


def _fill(path: Path, first: int):
    file = opened(path)
    for i in range(5*ROWS):
        row = (first + i) % ROWS
        if not same(file.read(row, 'x'), OUTPUTS[row]) and not file.write(row, 'x', OUTPUTS[row]): os._exit(1)


def test_processes_share_a_file(tmp_path):
    together = [FORK.Process(target=_fill, args=(tmp_path/'tower.bin', 5*i)) for i in range(3)]
    for p in together: p.start()
    for p in together: p.join()
    assert [p.exitcode for p in together] == [0, 0, 0]
    file = opened(tmp_path/'tower.bin')
    assert all(same(file.read(row, 'x'), OUTPUTS[row]) for row in range(ROWS))
    assert opened(tmp_path/'tower.bin', most=3*file.stride).slots == 2, 'a new bound'
    assert file.read(5, 'x') is None, 'the file is cut'
    assert same(file.read(1, 'x'), OUTPUTS[1])


def test_wrong_bytes_and_another_tower_are_found(tmp_path):
    file = opened(tmp_path/'tower.bin')
    for row in range(3): assert file.write(row, 'x', OUTPUTS[row])
    with (tmp_path/'tower.bin').open('r+b') as f:
        f.seek(file._at(1) + 100_000)
        f.write(b'wrong')
        f.seek(file._at(2) + 20) # in its record
        f.write(b'wrong')
    again = opened(tmp_path/'tower.bin')
    with pytest.warns(VLMTemporalWarning, match='damaged in slot 1'): assert again.read(1, 'x') is None
    assert again.read(2, 'x') is None and again.read(0, 'y') is None and same(again.read(0, 'x'), OUTPUTS[0])
    assert again.write(1, 'x', OUTPUTS[1]) and same(again.read(1, 'x'), OUTPUTS[1])
    for other in (dict(fingerprint='b'), dict(size=2*SIZE, fingerprint='b')):
        with pytest.warns(VLMTemporalWarning, match='written anew'): anew = opened(tmp_path/'tower.bin', **other)
        assert anew.read(0, 'x') is None and anew.write(0, 'x', OUTPUTS[0]) and same(anew.read(0, 'x'), OUTPUTS[0])


def test_a_full_disk_costs_the_file(tmp_path):
    "The system refuses to write more; there is one warning, the room is free again, and nothing is raised."
    file, before = opened(tmp_path/'tower.bin'), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert file.write(0, 'x', OUTPUTS[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.warns(VLMTemporalWarning, match='computed in every pass') as said:
            done = [file.write(row, 'x', OUTPUTS[row]) for row in range(ROWS)]
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done[:2] == [True, True] and not any(done[2:]) and len(said) == 1
    assert file.off and not (tmp_path/'tower.bin').exists() and file.read(0, 'x') is None


def test_a_folder_that_cannot_be_written_and_no_room(tmp_path):
    (tmp_path/'file').touch()
    refused = [dict(path=tmp_path/'file'/'tower.bin'), dict(path='/proc/self/tower.bin'),
               dict(path=tmp_path/'a.bin', most=1e5), dict(path=tmp_path/'b.bin', spare=1e18)]
    for how in refused:
        with pytest.warns(VLMTemporalWarning, match='in every pass') as said: file = opened(**dict(path=0) | how)
        assert file.off and len(said) == 1 and not file.write(0, 'x', OUTPUTS[0]) and file.read(0, 'x') is None
    assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.fixture
def known(monkeypatch):
    "For each batch of a run in this process: which of its examples were found in the file."
    seen, showing = [], TowerMemory.showing
    def watched(self, rows, found):
        seen.append([parts is not None for parts in found['known']] if found else None)
        return showing(self, rows, found)
    monkeypatch.setattr(TowerMemory, 'showing', watched)
    return seen


def curve(run: Path) -> tuple:
    history = json.loads((run/'history.json').read_text())
    return [(h['step'], h['loss']) for h in history], file_hash(run/'adapter'/'adapter_model.safetensors')


@pytest.fixture(scope='module')
def few(mock, tmp_path_factory):
    "Eight examples: a pass has four steps."
    out = tmp_path_factory.mktemp('few')/'shards'
    build(mock, out, max_clips=8)
    return out


@pytest.fixture(scope='module')
def plain(few, tmp_path_factory):
    "A run without a file."
    out = tmp_path_factory.mktemp('plain')/'run'
    fit(few, out, config=CONFIG)
    assert not (out/'tower.bin').exists()
    return curve(out)


def test_a_run_that_is_killed_and_resumed_reads_its_file(plain, few, tmp_path, known):
    "Losses and adapter are those of the run without a file, though a slot was damaged; at the end the file is gone."
    out, settings = tmp_path/'run', [f'{k}={v}' for k, v in vars(replace(CONFIG, tower_cache=1.)).items() if v != '']
    command = [*started(), 'train', str(few), str(out)]
    command += [word for s in settings for word in ('--set', s.replace('True', 'true').replace('False', 'false'))]
    process = Command(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob('checkpoints/checkpoint-3/complete.json')): time.sleep(.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL and last_checkpoint(out)
    with (out/'tower.bin').open('r+b') as f:
        stride = json.loads(f.read(4096).rstrip(b'\0').removeprefix(tower_file._MAGIC))['stride']
        filled = [f.seek(4096 + i*stride) and f.read(1) != b'\0' for i in range(8)]
        assert sum(filled) >= 6, 'three steps of two examples, at the least'
        f.seek(4096 + filled.index(True)*stride + 5000)
        f.write(b'wrong')
    with pytest.warns(VLMTemporalWarning, match=f'tower.bin is damaged in slot {filled.index(True)};'):
        run = fit(few, out, config=replace(CONFIG, tower_cache=2.), resume=True) # the bound is no part of the run
    assert run.resumed_from == 3 and curve(out) == plain and not (out/'tower.bin').exists()
    second, third = sum(known[1:5], []), sum(known[5:], [])
    assert len(third) == 4 and all(third) and sum(second) >= 7, 'nothing is computed again but what was damaged'


def test_half_a_file_a_loader_of_its_own_and_a_full_disk(plain, few, tmp_path, known, monkeypatch):
    "A bound for half of the rows, read by the data loader's processes; then a checkpoint needs the room."
    opened, refused = TowerFile.__init__, []
    def half(self, *args): opened(self, *args[:4], most=4096 + 4*(512 + args[2] + 4096), spare=args[5])
    mark = trainer.mark_complete
    def full_once(folder):
        if folder.name == 'checkpoint-6' and not refused:
            refused.append(folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mark(folder)
    monkeypatch.setattr(TowerFile, '__init__', half)
    monkeypatch.setattr(trainer, 'mark_complete', full_once)
    monkeypatch.setattr(trainer, '_loader', lambda gpu, passes: dict(dataloader_num_workers=2))
    monkeypatch.setenv('VLMTEMPORAL_SCRATCH', str(tmp_path/'scratch'))
    fit(few, tmp_path/'run', config=replace(CONFIG, tower_cache=1.))
    assert refused and curve(tmp_path/'run') == plain
    assert last_checkpoint(tmp_path/'run').name == 'checkpoint-10' and not list((tmp_path/'scratch').iterdir())
    second, third = sum(known[4:8], []), sum(known[8:], [])
    assert 1 <= sum(second) <= 4 and not any(third), 'half of the rows, and none when the file is gone'
