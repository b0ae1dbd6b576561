"The command line as a user meets it: shapes of JSON, exit codes, one line for every bad input."
import json
import shutil

import pytest

from vlmtemporal.operations import LOGISTICS


def test_sample(cli, video, tmp_path):
    code, out, err = cli('sample', video, '--json', '--plot', tmp_path/'p.png')
    d = json.loads(out)
    assert code == 0 and set(d) == {'video', 'sampler', 'fps', 'n_frames', 'frames'} and len(d['frames']) == 8
    assert [f['index'] for f in d['frames']] == sorted({f['index'] for f in d['frames']}) and all(set(f) == {'index', 'time', 'score'} for f in d['frames'])
    assert (tmp_path/'p.png').read_bytes()[:4] == b'\x89PNG'


def test_predict(cli, video):
    code, out, err = cli('predict', video, '--start', 20, '--json')
    d = json.loads(out); span = d['temporal_segment']
    assert code == 0 and d['dominant_operation'] in LOGISTICS.names and d['anticipated_next_operation'] in LOGISTICS.names
    assert 0 <= span['start_frame'] < span['end_frame'] <= 124 and 0 <= d['confidence'] <= 1
    assert {'clip_id', 'probabilities', 'parsed_by', 'latency_ms'} <= set(d) and err == ''


def test_analyze(cli, video, tmp_path):
    code, out, _ = cli('analyze', video, '--stride', 30, '--json', '--plot', tmp_path/'t.png')
    d = json.loads(out)
    assert code == 0 and set(d) == {'video', 'fps', 'segments', 'next'} and d['segments'][0]['start'] == 0 and (tmp_path/'t.png').exists()
    assert all(a['end'] == b['start'] for a, b in zip(d['segments'], d['segments'][1:]))


def test_twin_build_check(cli, tmp_path):
    code, out, _ = cli('twin', tmp_path/'twin', '--subjects', 2, '--boxes', 1, '--seed', 3, '--only', 'U0101')
    assert code == 0 and out.startswith('1 session') and not (tmp_path/'twin'/'U0102').exists()
    code, out, _ = cli('build', tmp_path/'twin', tmp_path/'shards', '--split', 'train', '--max-clips', 6)
    assert code == 0 and 'train: 6 examples' in out
    code, out, _ = cli('check', tmp_path/'shards', '--json')
    assert code == 0 and json.loads(out)['ok'] and json.loads(out)['splits']['train']['examples'] == 6
    shard = tmp_path/'shards'/'train'/'shard-000000.tar'; data = bytearray(shard.read_bytes()); data[len(data)//2] ^= 4; shard.write_bytes(data)
    code, out, _ = cli('check', tmp_path/'shards')
    assert code == 1 and 'shard-000000.tar' in out


def test_preflight_and_eval(cli, shards, tmp_path):
    code, out, _ = cli('preflight', shards, '--json')
    d = json.loads(out)
    assert code == 0 and d['micro_batch']*d['accumulation'] == 16 and d['seconds_per_step'] > 0
    code, out, _ = cli('eval', shards, tmp_path/'eval', '--clips', 2, '--adapter', 'twin', '--adapter', 'none')
    d = json.loads((tmp_path/'eval'/'results.json').read_text())
    assert code == 0 and set(d['base_model']) == set(d['finetuned_model']) == {'OCA', 'tIoU@0.5', 'AA@1'}
    assert [m['name'] for m in d['methods'] if m['predictions']] == ['base (twin)', 'twin adapter'] and list(d['provenance']['adapters']) == ['twin']


def test_help_teaches(cli):
    code, out, _ = cli('--help')
    assert code == 0 and all(c in out for c in 'twin sample study build check train preflight eval predict analyze serve demo doctor'.split())
    assert all("'none'" in cli(c, '--help')[1] for c in ('predict', 'analyze', 'serve'))
    assert cli('nonsense')[0] == 2 and cli('sample')[0] == 2


@pytest.fixture
def bad(tmp_path, mock, video):
    "One of everything that cannot be used."
    (tmp_path/'empty.mp4').touch(); (tmp_path/'text.mp4').write_text('not a video\n'*100); (tmp_path/'folder').mkdir()
    csv = 'U0101/annotation/openpack-operations/S0100.csv'; good = (mock/csv).read_text(); lines = good.splitlines()
    fields = lines[1].split(','); fields[6], fields[7] = fields[7], fields[6]
    for name, text in dict(column=good.replace(',end,', ',fin,', 1), reversed='\n'.join([lines[0], ','.join(fields)]), operation=good.replace(',10100,', ',4711,')).items():
        (tmp_path/name/csv).parent.mkdir(parents=True); (tmp_path/name/csv).write_text(text)
    (tmp_path/'index').mkdir(); (tmp_path/'index'/'index.json').write_text('{"format": 1}')
    (tmp_path/'stranger').mkdir(); shutil.copytree(mock/'U0101', tmp_path/'stranger'/'U0999')
    return tmp_path


BAD = {
    'no video': ('sample', 'none.mp4'), 'empty file': ('predict', 'empty.mp4'), 'text': ('sample', 'text.mp4'), 'folder without frames': ('analyze', 'folder'),
    'missing column': ('build', 'column', 'out'), 'reversed segment': ('build', 'reversed', 'out'), 'unknown operation': ('study', 'operation'),
    'unknown subject': ('build', 'stranger', 'out'), 'no model': ('preflight', 'SHARDS', '--model', 'folder'), 'no adapter': ('predict', 'VIDEO', '--adapter', 'folder'),
    'broken index': ('check', 'index'), 'no such hub model': ('train', 'SHARDS', 'out', '--model', 'nonsense'), 'no such subject': ('twin', 'out', '--only', 'U0999'), 'no shards': ('train', 'folder', 'out'), 'unknown setting': ('train', 'SHARDS', 'out', '--set', 'lr=1'),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input(what, bad, cli, shards, video):
    args = [{'SHARDS': str(shards), 'VIDEO': str(video)}.get(a, a) for a in BAD[what]]
    code, out, err = cli(*args, cwd=bad)
    assert code == 2 and out == '', (code, out, err)
    assert err.startswith('error: ') and len(err.strip().splitlines()) == 1 and 'Traceback' not in err, err
    assert not (bad/'out').exists() or not any((bad/'out').rglob('*')), 'something half-written was left behind'
