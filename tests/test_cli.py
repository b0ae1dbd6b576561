"The command line as a user meets it: shapes of JSON, exit codes, one line for every bad input."
import json
import shutil

import pytest

from vlmtemporal.basics import BadInput
from vlmtemporal.dataset import build
from vlmtemporal.frames import FrameSpec
from vlmtemporal.operations import LOGISTICS


def test_sample(cli, video, tmp_path):
    code, out, err = cli('sample', video, '--json', '--plot', tmp_path/'p.png')
    d = json.loads(out)
    assert code == 0 and set(d) == {'video', 'sampler', 'fps', 'n_frames', 'frames', 'warnings'}
    assert len(d['frames']) == 8 and d['warnings'] == []
    assert [f['index'] for f in d['frames']] == sorted({f['index'] for f in d['frames']})
    assert all(set(f) == {'index', 'time', 'score'} for f in d['frames'])
    assert (tmp_path/'p.png').read_bytes()[:4] == b'\x89PNG'


def test_predict(cli, video):
    code, out, err = cli('predict', video, '--start', 20, '--json')
    d = json.loads(out)
    span = d['temporal_segment']
    assert code == 0 and {d['dominant_operation'], d['anticipated_next_operation']} <= set(LOGISTICS.names)
    assert 0 <= span['start_frame'] < span['end_frame'] <= 124 and 0 <= d['confidence'] <= 1
    assert {'clip_id', 'probabilities', 'parsed_by', 'latency_ms'} <= set(d)
    seconds = 20 + span['start_frame']/25, 20 + (span['end_frame'] + 1)/25
    assert (d['start'], d['end'], d['fps']) == (*map(pytest.approx, seconds), 25)
    assert err.startswith('note: the model was trained on drawn videos') and len(err.splitlines()) == 1


def test_a_timeline_goes_to_a_person_and_comes_back(cli, video, tmp_path, monkeypatch):
    from vlmtemporal.labels import read_labels
    monkeypatch.chdir(tmp_path)
    code, out, err = cli('analyze', video, '--stride', '30', '--json', '--export', 'elan')
    written = tmp_path/f'{video.stem}.eaf'
    assert code == 0 and written.name in err
    said = [s for s in json.loads(out)['segments'] if s['operation'] != LOGISTICS.null]
    back = read_labels(written).rows
    assert [r.name for r in back] == [s['operation'] for s in said] and said
    for r, s in zip(back, said, strict=True): assert abs(r.start - s['start']) <= .04 >= abs(r.end - s['end'])
    code, _, err = cli('analyze', video, '--stride', '30', '--export', 'elan')
    assert code == 2 and 'is there already' in err
    assert cli('analyze', video, '--export', 'eaf')[0] == 2 == cli('analyze', video, '--to', 'x.csv')[0]


def test_analyze(cli, video, tmp_path):
    code, out, _ = cli('analyze', video, '--stride', 30, '--json', '--plot', tmp_path/'t.png')
    d = json.loads(out)
    assert code == 0 and set(d) == {'video', 'fps', 'segments', 'next', 'warnings'} and d['segments'][0]['start'] == 0
    assert (tmp_path/'t.png').exists()
    assert all(a['end'] == b['start'] for a, b in zip(d['segments'], d['segments'][1:]))


def test_twin_build_check(cli, tmp_path):
    code, out, _ = cli('twin', tmp_path/'twin', '--subjects', 2, '--boxes', 1, '--seed', 3, '--only', 'U0101')
    assert code == 0 and out.startswith('1 session') and not (tmp_path/'twin'/'U0102').exists()
    code, out, _ = cli('build', tmp_path/'twin', tmp_path/'shards', '--split', 'train', '--max-clips', 6)
    assert code == 0 and 'train: 6 examples' in out
    code, out, _ = cli('check', tmp_path/'shards', '--json')
    assert code == 0 and json.loads(out)['ok'] and json.loads(out)['splits']['train']['examples'] == 6
    shard = tmp_path/'shards'/'train'/'shard-000000.tar'
    data = bytearray(shard.read_bytes())
    data[len(data)//2] ^= 4
    shard.write_bytes(data)
    code, out, _ = cli('check', tmp_path/'shards')
    assert code == 1 and 'shard-000000.tar' in out


def test_preflight_and_eval(cli, shards, mock, tmp_path):
    code, out, _ = cli('preflight', shards, '--json')
    d = json.loads(out)
    assert code == 0 and d['micro_batch']*d['accumulation'] == 16 and d['seconds_per_step'] > 0
    build(mock, tmp_path/'moved', max_clips=8, spec=FrameSpec('entropy-small'))
    asked = ('--clips', 2, '--adapter', 'tiny', '--adapter', 'none')
    code, out, err = cli('eval', tmp_path/'moved', tmp_path/'eval', *asked)
    assert code == 0, err # `tiny` learnt from other frames than these hold: they are cut from the sessions
    d = json.loads((tmp_path/'eval'/'results.json').read_text())
    assert code == 0 and set(d['base_model']) == set(d['finetuned_model']) == {'OCA', 'tIoU@0.5', 'AA@1'}
    assert [m['name'] for m in d['methods'] if m['predictions']] == ['base (tiny)', 'tiny adapter']
    assert list(d['provenance']['adapters']) == ['tiny']
    (tmp_path/'moved'/'sessions.json').unlink()
    code, _, err = cli('eval', tmp_path/'moved', tmp_path/'again', *asked)
    assert code == 2 and 'trained on other frames' in err and err.count('error: ') == 1, err


COMMANDS = 'twin sample study build check train preflight eval ablate lopo predict analyze serve space demo doctor'


def test_help_teaches(cli):
    code, out, _ = cli('--help')
    assert code == 0 and all(c in out for c in COMMANDS.split())
    assert all("'none'" in cli(c, '--help')[1] for c in ('predict', 'analyze', 'serve'))


USAGE = ('nonsense',), ('sample',), ('serve', '--port'), ('train', 'a', 'b', '--lr', '1')


@pytest.mark.parametrize('typed', USAGE)
def test_usage_is_one_line(typed, cli):
    code, out, err = cli(*typed)
    assert code == 2 and out == '' and err.startswith('error: ') and len(err.splitlines()) == 1 and '--help' in err, err


@pytest.mark.parametrize('command', ['train', 'ablate', 'lopo'])
def test_help_shows_every_setting(command, cli):
    "As an option, with its default and what it is."
    from vlmtemporal.trainer import setting_fields
    code, out, _ = cli(command, '--help')
    words = ' '.join(out.replace('│', ' ').split())
    assert code == 0
    for s in setting_fields():
        if s.name == 'seed' and command != 'train': continue # their own
        assert '--' + s.name.replace('_', '-') in words and all(word in words for word in s.description.split()), s
        assert s.default == '' or f'[default: {str(s.default).lower()}]' in words.lower(), s


def test_settings_by_option_file_and_set(monkeypatch, tmp_path):
    "An option and --set win over the file; when both name a setting and differ, nothing is begun."
    import vlmtemporal.train as module
    from typer.testing import CliRunner
    from vlmtemporal.cli import app
    asked = []
    def fit(shards, out, model, config, resume, **more):
        asked.append(config)
        raise BadInput('enough')
    monkeypatch.setattr(module, 'fit', fit)
    (tmp_path/'c.json').write_text('{"epochs": 5, "lora_r": 5, "keep": 5}')
    options = ['--config', str(tmp_path/'c.json'), '--set', 'lora_r=4', '--set', 'keep=2', '--keep', '2',
               '--max-hours', '.5', '--gradient-checkpointing', 'false']
    CliRunner().invoke(app, ['train', 'shards', 'out', *options])
    other = CliRunner().invoke(app, ['train', 'shards', 'out', '--set', 'lora_alpha=4', '--lora-alpha', '2'])
    assert str(other.exception) == 'lora_alpha: --set says 4, --lora-alpha says 2; give one of them' and len(asked) == 1
    c = asked[0]
    assert (c.epochs, c.lora_r, c.keep, c.max_hours, c.gradient_checkpointing) == (5, 4, 2, .5, False)


# ---- names of the version before -------------------------------------------------------------------------------------
def stable(out):
    "What a command printed, but for how long it took."
    try: return {k: v for k, v in json.loads(out).items() if k != 'latency_ms'}
    except ValueError: return out


OLD = {
    'failures': (('failures', '--help'), ('ablate', '--help')),
    '--model and --adapter twin': (('predict', 'VIDEO', '--model', 'twin', '--adapter=twin', '--json'),
                                   ('predict', 'VIDEO', '--model', 'tiny', '--adapter=tiny', '--json')),
    '--lead of analyze': (('analyze', 'VIDEO', '--stride', '40', '--lead', '1', '--json'),
                          ('analyze', 'VIDEO', '--stride', '40', '--context', '1', '--json')),
}


@pytest.mark.parametrize('what', OLD)
def test_old_names_work_and_warn(what, cli, video):
    old, new = ([str(video) if a == 'VIDEO' else a for a in args] for args in OLD[what])
    (code, out, err), (code_now, out_now, err_now) = cli(*old), cli(*new)
    assert code == code_now == 0 and stable(out) == stable(out_now)
    assert 'is called' in err and 'is called' not in err_now and 'is called' not in out


def test_old_names_of_build(cli, mock, tmp_path):
    "The same shards to the byte."
    common = ('build', mock, 'shards', '--split', 'train', '--max-clips', 3, '--workers', 1)
    old = '--splits=rgb', '--lead', 1, '--boosted'
    now_called = '--protocol=rgb', '--context', 1, '--boost-boundaries'
    code, out, err = cli(*common, *old, cwd=make(tmp_path/'old'))
    now, out_now, err_now = cli(*common, *now_called, cwd=make(tmp_path/'new'))
    assert code == now == 0 and out == out_now and len(err.splitlines()) == 3 and err_now == ''
    old, new = (p/'shards'/'train'/'shard-000000.tar' for p in (tmp_path/'old', tmp_path/'new'))
    assert old.read_bytes() == new.read_bytes()
    code, _, err = cli(*common, *now_called, cwd=tmp_path/'new')
    assert code == 0 and err == 'shards: holds just this already, nothing is written anew\n'


def make(folder):
    folder.mkdir()
    return folder


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.fixture
def bad(tmp_path, mock, video):
    "One of everything that cannot be used."
    (tmp_path/'empty.mp4').touch()
    (tmp_path/'text.mp4').write_text('not a video\n'*100)
    (tmp_path/'folder').mkdir()
    csv = 'U0101/annotation/openpack-operations/S0100.csv'
    good = (mock/csv).read_text()
    lines = good.splitlines()
    fields = lines[1].split(',')
    fields[6], fields[7] = fields[7], fields[6]
    broken = dict(column=good.replace(',end,', ',fin,', 1), reversed='\n'.join([lines[0], ','.join(fields)]),
                  operation=good.replace(',10100,', ',4711,'))
    for name, text in broken.items():
        (tmp_path/name/csv).parent.mkdir(parents=True)
        (tmp_path/name/csv).write_text(text)
    (tmp_path/'index').mkdir()
    (tmp_path/'index'/'index.json').write_text('{"format": 1}')
    (tmp_path/'stranger').mkdir()
    shutil.copytree(mock/'U0101', tmp_path/'stranger'/'U0999')
    (tmp_path/'stranger'/csv.replace('U0101', 'U0999')).write_text(good.replace('U0101', 'U0999'))
    return tmp_path


BAD = {
    'no video': ('sample', 'none.mp4'),
    'empty file': ('predict', 'empty.mp4'),
    'text': ('sample', 'text.mp4'),
    'folder without frames': ('analyze', 'folder'),
    'no frame': ('sample', 'VIDEO', '--k', '0'),
    'no port': ('serve', '--port', '65536'),
    'missing column': ('build', 'column', 'out'),
    'reversed segment': ('build', 'reversed', 'out'),
    'unknown operation': ('study', 'operation'),
    'unknown subject': ('build', 'stranger', 'out'),
    'no model': ('preflight', 'SHARDS', '--model', 'folder'),
    'no adapter': ('predict', 'VIDEO', '--adapter', 'folder'),
    'broken index': ('check', 'index'),
    'no such hub model': ('train', 'SHARDS', 'out', '--model', 'nonsense'),
    'no such subject': ('twin', 'out', '--only', 'U0999'),
    'no shards': ('train', 'folder', 'out'),
    'unknown setting': ('train', 'SHARDS', 'out', '--set', 'lr=1'),
    'a setting of another type': ('train', 'SHARDS', 'out', '--set', 'epochs=many'),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input(what, bad, cli, shards, video):
    args = [{'SHARDS': str(shards), 'VIDEO': str(video)}.get(a, a) for a in BAD[what]]
    code, out, err = cli(*args, cwd=bad)
    assert code == 2 and out == '', (code, out, err)
    assert err.startswith('error: ') and len(err.strip().splitlines()) == 1 and 'Traceback' not in err, err
    assert not (bad/'out').exists() or not any((bad/'out').rglob('*')), 'something half-written was left behind'
