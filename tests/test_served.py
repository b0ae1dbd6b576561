"A model behind an address: the same table as in this process, whatever the server does, and nothing paid twice."
import functools, gzip, json, os, signal, socket, subprocess, sys, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from forked import Command, started
from served_model import NAME, counted, serving
from vlmtemporal import evaluation
from vlmtemporal.basics import BadInput, VLMTemporalError, json_hash
from vlmtemporal.dataset import build
from vlmtemporal.engine import Engine
from vlmtemporal.evaluation import evaluate, evaluation_set
from vlmtemporal.exports import export_model
from vlmtemporal.loading import load_model
from vlmtemporal.operations import LOGISTICS
from vlmtemporal.prompts import parse_answer
from vlmtemporal.report import save_result
from vlmtemporal.results import rescore, score_table
from vlmtemporal.served import MOST_BYTES, VOTES, Endpoint, ServedModel
from vlmtemporal.shards import find_split
from vlmtemporal.twin import make_twin

CLIPS = int(os.environ.get('VLMTEMPORAL_SERVED_CLIPS', 3)) # 60: issue 24


@pytest.fixture(scope='module')
def tested(shards, tmp_path_factory):
    "Shards with so many test clips."
    if CLIPS < 7: return shards
    work = tmp_path_factory.mktemp('served')
    make_twin(work/'twin', seed=5, boxes=4, only=['U0108'])
    build(work/'twin', work/'shards', 'test')
    return work/'shards'


@pytest.fixture(scope='module')
def examples(shards): return evaluation_set(find_split(shards, 'test'), 5)


@pytest.fixture(scope='module')
def small(): return load_model('tiny', 'tiny')


def address(server, name=NAME): return f'openai:{server.url}#{name}'


def served(server, *args, name=NAME, **options):
    "A client in a hurry."
    return ServedModel(address(server, name), *args, **dict(timeout=5., pause=.01) | options)


def refused(f, *args, **options):
    with pytest.raises(VLMTemporalError) as e: f(*args, **options)
    assert '\n' not in str(e.value)
    return str(e.value)


def rows(result, method):
    "What the tables say of a method; the column of failures is shown only where somebody failed."
    blocks = [score_table(result.comparison, block) for block in ('all clips', 'inner boundary')]
    known = [dict(zip(t.head, row)) for t in blocks for row in t.rows if row[0] == method]
    return [{k: v for k, v in row.items() if k != 'method' and (k, v) != ('parse failures', '0.00')}
            for row in known]


def pictures(server): return [body for shows, body, _ in server.asked if shows]


@pytest.mark.parametrize('mode,decoder', [('json_schema', 'constrained'), ('text', 'generate')])
def test_the_same_table(mode, decoder, tested, small, tmp_path):
    direct = evaluate(tested, 'tiny', ['tiny'], clips=CLIPS, decoder=decoder)
    with serving(small) as server, served(server, tmp_path/'a.jsonl', timeout=60., free=mode == 'text') as model:
        found = evaluate(tested, model, clips=CLIPS)
    assert len(pictures(server)) == len(found.clips) >= CLIPS
    assert rows(found, f'served ({NAME})') == rows(direct, 'tiny adapter') and len(rows(found, f'served ({NAME})')) == 2
    assert [a and a.to_dict() | dict(confidence=0) for a in found.models[0].answers] == \
           [a and a.to_dict() | dict(confidence=0) for a in direct.models[1].answers]
    assert found.provenance.decoder == f'served, {mode}' and mode in found.provenance.model['mode']


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def wait_for(url, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try: return Endpoint(url, timeout=5.).names()
        except VLMTemporalError: time.sleep(.3)
    raise AssertionError('the server did not start')


def test_transformers_serve_gives_the_same_table(tested, tmp_path, monkeypatch):
    pytest.importorskip('openai', reason='transformers serve needs the package openai')
    folder, port = export_model('tiny', tmp_path/'exported', 'vllm'), free_port()
    model = folder/'model'
    program = str(Path(sys.executable).parent/'transformers')
    command = [program, 'serve', '--device', 'cpu', '--port', str(port), str(model)]
    with (tmp_path/'log').open('w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | dict(HF_HUB_OFFLINE='1'))
    try:
        url = f'http://localhost:{port}/v1'
        assert wait_for(url, process) == [str(model)]
        found = evaluate(tested, ServedModel(f'openai:{url}#{model}'), clips=CLIPS)
        request = json.loads((folder/'request.json').read_text()) | dict(model=str(model))
        assert parse_answer(Endpoint(url).chat(request)['text'], LOGISTICS).stage == 'json', 'what the README sends'
    finally:
        process.terminate()
        process.wait(30)
    monkeypatch.setattr(evaluation, 'load_model', functools.partial(load_model, quantize=False)) # as it is served
    direct = evaluate(tested, model, clips=CLIPS, decoder='generate')
    assert found.provenance.decoder == 'served, text', 'it takes a schema, and does not heed it'
    assert rows(found, f'served ({model})') == rows(direct, 'base (model)') and rows(found, f'served ({model})')


def status(code, value=None, **headers):
    return lambda handler: handler.send(code, value if value is not None else dict(error='later'), **headers)

def drop(handler): handler.close_connection = True

def half(handler):
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{"choices": [{"mess')
    handler.close_connection = True

def never(handler):
    time.sleep(1.2)
    handler.close_connection = True

def dribble(handler):
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n')
    for _ in range(12):
        handler.wfile.write(b' ')
        handler.wfile.flush()
        time.sleep(.1)
    handler.close_connection = True

def large(handler):
    handler.send(200, json.dumps(dict(choices=[dict(message=dict(content='x'*10*2**20))])).encode())

FAULTS = dict(
    twice_500=[status(500)]*2, busy=[status(429, Retry_After='0.3')], busy_for_a_date=[
        status(503, Retry_After='Wed, 21 Oct 2015 07:28:00 GMT')], gateway=[status(502, b'<html>bad gateway</html>')],
    drop=[drop], half_an_answer=[half], half_json=[status(200, b'{"choices": [{"mess')],
    garbage=[status(200, b'\0\xff\xfe')],
    html=[status(200, b'<html><script>alert(1)</script></html>')], large=[large], never=[never], dribble=[dribble],
    other_json=[status(200, dict(choices=[]))], a_list=[status(200, [1])], deep=[status(200, b'['*10**5)],
    error_with_200=[status(200, dict(error=dict(message='overloaded')))],
    bomb=[status(200, gzip.compress(b'x'*10**6), Content_Encoding='gzip')],
    many=[status(500), drop, half, status(429, Retry_After='0'), status(200, b'')])


@pytest.mark.parametrize('fault', FAULTS)
def test_what_passes_is_tried_again(fault, examples):
    with serving(None) as server, served(server, timeout=1. if fault in ('never', 'dribble') else 5.) as model:
        assert model.asking.mode == 'json_schema'
        server.faults, begin = list(FAULTS[fault]), time.monotonic()
        found = model.predict(examples, LOGISTICS)
    assert [p.key for p in found] == [e.key for e in examples]
    assert [p.answer for p in found] == [counted(e, LOGISTICS) for e in examples]
    assert len(pictures(server)) == len(examples) + len(FAULTS[fault]) and not server.faults
    if fault == 'busy': assert time.monotonic() - begin >= .3


def test_what_lasts_is_one_sentence_and_what_was_answered_is_kept(examples, tmp_path):
    cases = {'status 500, not <b>now</b>, 3 times': status(500, dict(error='not <b>now</b>')), 'more than 1 MiB': large,
             'asks to wait 99999 s': status(429, Retry_After='99999'), 'does not take a clip of 8': status(413),
             'sends on to file:///etc/passwd': status(307, Location='file:///etc/passwd')}
    with serving(None) as server:
        for n, (said, fault) in enumerate(cases.items()):
            with served(server, tmp_path/f'{n}.jsonl', tries=3, concurrency=1) as model:
                assert len(model.predict(examples[:2], LOGISTICS)) == 2
                server.faults, begin = [fault]*3, time.monotonic()
                assert said in refused(model.predict, examples, LOGISTICS)
                assert time.monotonic() - begin < 2, 'nobody waits for other clips'
                server.faults, before = [], len(pictures(server))
                assert len(model.predict(examples, LOGISTICS)) == len(examples), 'the same again goes on'
                assert before <= len(pictures(server)) <= before + len(examples) - 2
    assert MOST_BYTES == 2**20


def test_nobody_answers_after_it_was_there(examples):
    with serving(None) as server, served(server, tries=2) as model: assert model.asking.mode
    assert 'the connection broke, ConnectError, 2 times' in refused(model.predict, examples, LOGISTICS)


@pytest.mark.parametrize('options,mode', [
    (dict(), 'json_schema'), (dict(can=('json_object', 'text')), 'json_object'), (dict(can=('text',)), 'text'),
    (dict(ignores=True), 'text')])
def test_how_far_it_can_be_held_is_found_out(options, mode, examples):
    with serving(None, **options) as server, served(server) as model:
        assert model.decoder == f'served, {mode}'
        assert [p.answer for p in model.predict(examples, LOGISTICS)] == [counted(e, LOGISTICS) for e in examples]
    assert {b.get('response_format', {}).get('type', 'text') for b in pictures(server)} == {mode}


def test_settings_that_a_server_does_not_take(examples, tmp_path):
    with serving(None, unknown=('temperature', 'max_tokens')) as server:
        with served(server, tmp_path/'a.jsonl') as model: model.predict(examples, LOGISTICS)
        assert {*pictures(server)[0]} == {'model', 'messages', 'seed', 'max_completion_tokens', 'response_format'}
        with served(server, tmp_path/'a.jsonl') as again: again.predict(examples, LOGISTICS)
        assert len(pictures(server)) == len(examples)
        assert again.source() == model.source() and 'max_tokens or temperature' in ' '.join(model.source()['notes'])


def test_what_is_not_there(monkeypatch):
    with serving(None, sees=False, key='right') as server:
        monkeypatch.setenv('VLMTEMPORAL_API_KEY', 'sk-very-secret')
        said = refused(lambda: served(server).decoder)
        assert 'wants another key' in said and '***' in said and 'secret' not in said
        monkeypatch.setenv('VLMTEMPORAL_API_KEY', 'right')
        assert f'use {NAME}' in refused(lambda: served(server, name='other').decoder)
        assert ServedModel(f'openai:{server.url}').name == f'served ({NAME})', 'the only one'
        assert 'has no adapters here' in refused(evaluation._check_models, served(server), [0], None, None)
    assert 'no server answers there' in refused(lambda: served(server).decoder)


def test_no_key_is_written_anywhere(shards, tmp_path, monkeypatch):
    key = 'sk-very-secret'
    monkeypatch.setenv('VLMTEMPORAL_API_KEY', key)
    def echo(handler): handler.send(200, dict(model=key, choices=[dict(message=dict(
        content=f'{handler.headers["Authorization"]}: Tape'), finish_reason=key)]))
    with serving(None, key=key) as server, served(server, tmp_path/'answers.jsonl') as model:
        assert model.asking.mode
        server.faults = [echo]*2
        save_result(evaluate(shards, model, clips=2), tmp_path)
    written = b''.join(p.read_bytes() for p in tmp_path.rglob('*') if p.is_file())
    assert b'Bearer ***: Tape' in written and key.encode() not in written
    assert all(h['Authorization'] == f'Bearer {key}' for _, _, h in server.asked)


def test_sessions_and_hostile_names(shards, mock, tmp_path):
    name = '<script>alert(1)</script>|x'
    with serving(None, name=name) as server, served(server, name=name) as model:
        result = evaluate(shards, model, clips=1, root=mock, max_sessions=1)
    page = save_result(result, tmp_path).read_text()
    assert '<script>alert' not in page and 'counts as 0.9 for its operation' in page and 'weights are not known' in page
    assert result.notes[1] in result._repr_markdown_() and not any('ECE' in r for r in rows(result, model.name))
    windows = result.sessions.windows[model.name][0]
    assert len(windows.starts) > 20 and (windows.probabilities.max(1) == .9).all()
    assert [n.rpartition(', ')[2] for n in result.sessions.timelines] == ['windows', 'HSMM']
    again = rescore(tmp_path/'results.json')
    assert again.evidence == result.evidence and again._repr_markdown_() == result._repr_markdown_()


def test_a_killed_evaluation_goes_on(shards, tmp_path):
    command = [*started(), 'eval', str(shards), str(tmp_path/'out'), '--clips', '5']
    def slow(handler):
        time.sleep(.4)
        handler.complete(handler.body)
    with serving(None) as server:
        command += ['--model', address(server), '--concurrency', '2']
        server.faults = [slow]*100
        first = Command(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(pictures(server)) < 4 and first.poll() is None: time.sleep(.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        kept = (tmp_path/'out'/'answers.jsonl').read_text().count('\n')
        server.faults, before = [], len(pictures(server))
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asked = Counter(json_hash(body) for body in pictures(server))
        assert kept >= 2 and before + len(asked) - (kept - 1) == sum(asked.values()), 'what was kept is not asked again'
    assert f'served ({NAME})' in done.stdout and 'held to the JSON schema' in done.stdout


def test_ctrl_c_keeps_what_is_under_way(examples, tmp_path):
    with serving(None) as server, served(server, tmp_path/'a.jsonl', concurrency=2) as model:
        found = model.ask_all(examples, LOGISTICS)
        next(found)
        with pytest.raises(KeyboardInterrupt): found.throw(KeyboardInterrupt())
        assert len(model.asking.answers) == len(pictures(server)) + 1
        assert len(model.predict(examples, LOGISTICS)) == len(pictures(server)) == len(examples)


def test_other_questions_are_other_requests(examples):
    with serving(None) as server, served(server) as model:
        one = model.request(examples[0], LOGISTICS)
        changed = examples[0].frames.copy()
        changed[-1, -1, -1, -1] ^= 1
        assert json_hash(one) != json_hash(model.request(replace(examples[0], frames=changed), LOGISTICS))
        assert one['temperature'] == 0 and one['seed'] == 0 and 'data:image/png;base64,' in str(one)


def test_predict_and_analyze(video, tmp_path, cli):
    with serving(None) as server:
        engine = Engine(served(server))
        found = engine.predict(video, start=3.)
        assert found.answer and not found.probabilities and found.parsed_by == 'json', 'no probabilities are made up'
        analysis = engine.analyze(video, stride=4.)
        engine.close()
        assert analysis.warnings == (VOTES,) and .5 < max(analysis.timeline.probabilities) < .9001
        assert len(pictures(server)) == 1 + analysis.windows and server.most_busy > 1
        code, out, err = cli('predict', video, '--start', 3, '--model', address(server), '--json')
        assert code == 0 and json.loads(out)['dominant_operation'] == found.answer.dominant_operation, err
        code, out, err = cli('predict', video, '--model', address(server), '--adapter', 'tiny')
        assert code == 2 and 'serve each under a name of its own' in err and err.count('\n') == 1
    code, out, err = cli('analyze', video, video.parent, '--model', address(server), '--out', tmp_path/'a.jsonl')
    assert code == 2 and 'no server answers there' in err


def test_wrong_numbers():
    for options in (dict(concurrency=0), dict(timeout=0), dict(max_tokens=0), dict(tries=0), dict(concurrency=1.5)):
        with pytest.raises(BadInput): ServedModel('openai:http://127.0.0.1:9/v1#a', **options)
