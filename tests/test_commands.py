"""Every command that README.md and ARCHITECTURE.md show is run: here, on seconds of the twin and with settings that end
soon, or in the test that is named, which is there and holds it."""
import importlib.util, os, re, shlex, shutil, socket, subprocess, time, urllib.request
from configparser import ConfigParser

import pytest
import typer

from conftest import ROOT
from forked import Command, started
from vlmtemporal.basics import read_json
from vlmtemporal.cli import app
from vlmtemporal.recordings import sessions

TEXTS = {name: (ROOT/name).read_text() for name in ('README.md', 'ARCHITECTURE.md')}
FEW = '--set max_steps=2 --set micro_batch=1 --set accumulation=1 --set save_steps=1 --set validate_steps=1 ' \
      '--set validate_clips=1'
ONCE = '--set max_steps=1 --set micro_batch=1 --set accumulation=1 --clips 1 --max-clips 2 --workers 1'

# ---- what is run here; each of OTHERS needs what FIRST leaves --------------------------------------------------------
FIRST = ('init videos',
         'build videos shards --max-clips 6 --workers 1',
         f'train shards run {FEW} --best OCA --patience 3')
OTHERS = {
    'sample': 'sample videos/person0.mp4 --plot frames.png',
    'view': 'view videos --out pages',
    'normalise': 'normalise videos small --workers 1',
    'study': 'study videos --sampler uniform --workers 1 --json',
    'context': 'build videos wider --context 1 --hard-jitter 0.5 --max-clips 2 --split train --workers 1',
    'check': 'check shards',
    'as labels': 'export shards llava',
    'preflight': 'preflight shards --json',
    'resume': f'train shards run --resume {FEW} --best OCA --patience 3',
    'another': f'train shards second --from run/adapter --preflight --processes 1 {FEW}',
    'calibrate': 'calibrate shards run/adapter --clips 3',
    'eval': 'eval shards report --adapter run/adapter --clips 2',
    'eval of what ships': 'eval SHARDS shipped --adapter tiny --clips 1',
    'rescore': 'rescore RESULTS --out again',
    'ablate': f'ablate videos ablated --compare samplers {ONCE}',
    'lopo': f'lopo videos left --person person0 {ONCE}',
    'merge': 'merge run/adapter merged',
    'export': 'export run/adapter served --for vllm',
    'gguf': f'export run/adapter gguf --for gguf --converter {ROOT/"tests"/"converter.py"}',
    'predict': 'predict videos/person0.mp4 --model tiny --adapter run/adapter --start 3 --json',
    'analyze': 'analyze videos/person0.mp4 --model tiny --adapter run/adapter --stride 6 --export elan',
    'predict many': 'predict videos',
    'analyze many': 'analyze videos --stride 10',
    'live': 'live videos/person0.mp4 --seconds 1 --json',
    'space': 'space hosted',
    'doctor': 'doctor --json',
    'help': 'serve --help',
}
LEFT = {'sample': 'frames.png', 'view': 'pages/index.html', 'normalise': 'small', 'context': 'wider/train/index.json',
        'as labels': 'llava', 'another': 'second/adapter', 'calibrate': 'run/adapter/calibration.json',
        'eval': 'report/report.html', 'eval of what ships': 'shipped/report.html', 'rescore': 'again/report.html',
        'ablate': 'ablated/ablation.json', 'lopo': 'left/lopo.json', 'merge': 'merged/config.json',
        'export': 'served/request.json', 'gguf': 'gguf/model.gguf', 'analyze': 'person0.eaf',
        'predict many': 'predictions.jsonl', 'analyze many': 'timelines.jsonl', 'space': 'hosted/app.py'}
# the way back: what the model says becomes the labels of a video, in place of its table
BACK = ('analyze back/person1.mp4 --model tiny --adapter run/adapter --stride 6 --export elan --to back/person1.eaf',
        'init back --fresh')

# ---- what other tests run: (a command, the file, what stands in it) --------------------------------------------------
ELSEWHERE = (
    ('serve', 'tests/test_serve.py', "'serve', '--port'"),
    ('twin OUT', 'tests/test_cli.py', "cli('twin', tmp_path/'twin'"),
    ('demo OUT', 'nbs/04i_demo.ipynb', 'run_demo('),
    ('build ROOT OUT --protocol rgb --context 1', 'tests/test_cli.py', "'--protocol=rgb', '--context', 1"),
    ('build ROOT OUT --engine ray', 'tests/test_cluster.py', "'--engine', 'ray'"),
    ('build ROOT s3://BUCKET/OUT --engine ray', 'tests/test_cluster.py', "engine='ray'"),
    ('predict FOLDER --table FILE', 'tests/test_batches.py', "'predict', folder, '--start', 2, '--table'"),
    ('analyze VIDEO --table FILE', 'tests/test_batches.py', "'analyze', folder/'monday.mp4', '--table'"),
    ('analyze FOLDER --engine ray', 'tests/test_cluster.py', "'--engine', 'ray', '--address', nodes.address"),
    ('eval OUT REPORT --model openai:URL', 'tests/test_served.py', "'--model', address(server)"),
    ('train SHARDS RUN --nodes 2 --node 0', 'tests/test_nodes.py', "'--nodes', 2, '--node', 0"),
    ('publish RUN/adapter OWNER/NAME', 'tests/test_train.py', "'publish', str(adapter), 'alice/packing'"),
    ('space OUT --push OWNER/NAME', 'tests/test_space.py', "'--push', 'alice/packing'"),
    ('live rtsp://ADDRESS', 'tests/test_live.py', 'def rtsp('),
    ('kaggle setup --data videos --dry-run', 'tests/test_kaggle.py', "say('setup', '--data', videos, '--dry-run'"),
    ('kaggle setup --data OPENPACK --wheels DIR', 'tests/test_kaggle.py', "args = *args, '--wheels'"),
    ('kaggle train --model tiny', 'tests/test_kaggle.py', "say('train', '--model', 'tiny'"),
    ('kaggle train --hours 8 --data twin --fresh --dry-run', 'tests/test_kaggle.py',
     "say('train', '--hours', '8', '--data', 'twin', '--fresh', '--dry-run'"),
    ('kaggle pull', 'tests/test_kaggle.py', "say('pull')"),
    ('kaggle pull --all', 'tests/test_kaggle.py', "say('pull', '--all')"),
    ('kaggle pull --version N', 'tests/test_kaggle.py', "say('pull', 'train', 'older', '--version', '1')"),
    ('kaggle status', 'tests/test_kaggle.py', "say('status'"),
    ('kaggle push CHAPTER --set epochs=1 --hours 8 --dry-run', 'tests/test_kaggle.py',
     "say('push', '2', '--set', 'epochs=1', '--hours', '8', '--model', 'tiny', '--dry-run'"),
    ('kaggle train --version N', 'tests/test_kaggle.py', "say('train', '--version', '1')"),
    ('kaggle push CHAPTER --version N', 'tests/test_kaggle.py', "say('push', 'eval', '--version', '1')"),
    ('kaggle push CHAPTER --anyway', 'tests/test_kaggle.py', "say('push', 'eval', '--anyway')"),
)
TARGETS = { # of make
    'demo': ('nbs/04i_demo.ipynb', 'run_demo('),
    'test': ('Makefile', '-m pytest'), # this is it
    'lint': ('Makefile', 'test: lint'),
    'setup': ('Makefile', 'lint: setup'),
    'readme': ('tests/test_house.py', 'readme'),
    'kaggle-check': ('tests/test_kaggle.py', 'VLMTEMPORAL_KAGGLE_CHECK'),
    'serve-check': ('tests/test_storm.py', 'VLMTEMPORAL_SERVE_CHECK'),
}
OTHER_PROGRAMS = (
    (r'docker compose -f deploy/compose.yaml --profile \w+ up --build', 'tests/test_containers_deploy.py',
     "'--profile', profile"),
    (r'kaggle kernels push -p kaggle/\w+', 'tests/test_kaggle.py', "'kernels', 'push', '-p', kernel"),
    (r'python OUT/app\.py', 'tests/test_space.py', "there/'app.py'"),
    (r'pytest tests/test_backbones\.py', 'Makefile', '-m pytest'),
    (r'python tools/picture\.py', 'tests/test_commands.py', "'picture.py'"),
)


# ---- what the texts show ---------------------------------------------------------------------------------------------
def blocks(text, language): return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def commands(text):
    "Lines of sh blocks without their comments, and what is quoted in a line and begins as a command does."
    lines = [re.split(r'\s+#', line)[0].strip() for block in blocks(text, 'sh') for line in block.splitlines()]
    quoted = re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S))
    return [*filter(None, lines), *filter(begins_as_a_command, quoted)]


def begins_as_a_command(quoted):
    first, *rest = quoted.split()
    named = first in SUBCOMMANDS and rest and re.match(r"--|[A-Z]+\b|[a-z]+$", rest[0])
    programs = 'vlmtemporal', 'make', 'pip', 'kaggle', 'docker', 'curl', 'python', 'source', 'pytest', 'nbdev_test'
    script = re.match(r'(bench|tools)/\w+\.py', first)
    return bool(named or script or (first in programs and rest) or first.startswith('--'))


SUBCOMMANDS = {*typer.main.get_command(app).commands} - {'kaggle'}


def asked(command):
    "A command of ours: which one, and which options it has."
    words = shlex.split(command)
    if words[0] == 'vlmtemporal': words = words[1:]
    name = ' '.join(words[:1 + (words[:1] == ['kaggle'])]) if words and not words[0].startswith('-') else ''
    return name, {w.split('=')[0] for w in words if w.startswith('--')} - {'--help', '--json'}


RUN = [asked(c) for c in (*FIRST, *BACK, *OTHERS.values(), *(c for c, *_ in ELSEWHERE))]


def options_run(name):
    "All options with which a command is run somewhere; of any command, where none is named."
    found = [options for ran, options in RUN if name in ('', ran) or ran == f'kaggle {name}']
    return set().union(*found) if found else None


def missing(command):
    "Why nothing runs it; None where something does."
    first = command.split()[0]
    if first == 'vlmtemporal' or first in SUBCOMMANDS or first.startswith('--'):
        name, options = asked(command)
        ran = options_run(name)
        if ran is None: return f'no test runs {name}'
        return f'no test runs {name} with {", ".join(sorted(options - ran))}' if options - ran else None
    if first == 'curl': return None # `test_a_page_and_an_api` runs all of them
    if first == 'make': return None if command.split()[1] in TARGETS else 'no test is named for it in TARGETS'
    if first == 'source': return None if command == f'source {VENV}/bin/activate' else 'the Makefile has another folder'
    if first == 'pip': return missing_extra(command)
    if script := re.match(r'(?:python )?((?:bench|tools)/\w+\.py)', command): return missing_script(script[1])
    if any(re.fullmatch(pattern, command) for pattern, *_ in OTHER_PROGRAMS): return None
    return 'nothing is known of it'


VENV = re.search(r'^VENV \?= (.*)$', (ROOT/'Makefile').read_text(), re.M)[1]


def missing_extra(command):
    "`pip install` of what settings.ini does not have."
    settings = ConfigParser(delimiters=['='], interpolation=None)
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    wanted = re.findall(r"\[([\w,]+)\]", command)
    absent = [e for extras in wanted for e in extras.split(',') if f'{e}_requirements' not in settings['DEFAULT']]
    return f'there is no extra {absent[0]}' if absent else None


def missing_script(script):
    "A tool or a bench that is not there, or that no test loads or starts."
    folder, name = script.split('/')
    if not (ROOT/script).is_file(): return 'there is no such file'
    how = re.compile(rf"'{folder}'\s*/\s*'{name}'|{folder}/{name}' ?\)|'{name}'\)")
    return None if any(how.search(p.read_text()) for p in (ROOT/'tests').glob('test_*.py')) else 'no test starts it'


@pytest.mark.parametrize('name', TEXTS)
def test_nothing_is_shown_that_nothing_runs(name):
    wrong = {c: why for c in commands(TEXTS[name]) if (why := missing(c))}
    assert not wrong, 'add it to OTHERS, or name the test that runs it in ELSEWHERE'


def test_it_would_be_found_out():
    new = ('vlmtemporal eval OUT REPORT --upside-down', 'vlmtemporal nonsense', 'make nothing', 'bench/nothing.py',
           "pip install 'vlmtemporal[nothing]'", 'rm -r videos', '--nothing', 'kaggle nonsense')
    assert all(map(missing, new)) and len(commands('```sh\nmake test # all\n```\n`eval OUT` and `nbs/`')) == 2
    assert len(commands(TEXTS['README.md'])) > 50 and len(commands(TEXTS['ARCHITECTURE.md'])) > 5


NAMED = *ELSEWHERE, *OTHER_PROGRAMS, *((f'make {target}', *where) for target, where in TARGETS.items())


@pytest.mark.parametrize('case', NAMED, ids=lambda case: case[0])
def test_the_test_that_is_named_is_there(case):
    _, file, holds = case
    assert holds in (ROOT/file).read_text()


def test_the_blocks_of_python_are_cells_that_the_page_runs():
    "All but the client of a server, which `test_a_page_and_an_api` runs."
    page = [''.join(c['source']) for c in read_json(ROOT/'nbs'/'index.ipynb')['cells'] if c['cell_type'] == 'code']
    shown = [b.strip() for b in blocks(TEXTS['README.md'], 'python') if 'gradio_client' not in b]
    assert len(shown) > 2 and all(any(block in cell for cell in page) for block in shown)


# ---- running them ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def work(cli, brief, tmp_path_factory):
    "A folder in which a person has begun: three videos with tables of labels, their shards and a short training."
    there = tmp_path_factory.mktemp('commands')
    (there/'videos').mkdir()
    for i, s in enumerate(sessions(brief)):
        shutil.copy(s.source, there/'videos'/f'person{i}.mp4')
        rows = [f'{x.start},{x.end},{x.operation}' for x in s.segments]
        (there/'videos'/f'person{i}.csv').write_text('\n'.join(['start,end,label', *rows]))
    for command in FIRST: run_in(there, cli, command)
    assert (there/'run'/'adapter').is_dir()
    return there


def run_in(there, cli, command, **files):
    "Run it as it is typed in that folder; it ends well."
    words = [files.get(w, w) for w in shlex.split(command)]
    code, out, err = cli(*words, cwd=there)
    assert code == 0 and 'Traceback' not in err, f'{command}\n{out}\n{err}'
    return out


@pytest.mark.parametrize('what', OTHERS)
def test_a_command_runs(what, work, shards, cli):
    from vlmtemporal.backbones import bundled_model
    files = dict(SHARDS=shards, RESULTS=next((bundled_model()/'results').glob('201.json.gz')))
    out = run_in(work, cli, OTHERS[what], **files)
    assert (work/LEFT[what]).exists() if what in LEFT else out.strip()


def test_the_way_back(work, cli):
    shutil.copytree(work/'videos', work/'back')
    tables = sorted((work/'back').glob('*.csv'))
    rows = [f'{p.stem}.mp4,{row}' for p in tables for row in p.read_text().splitlines()[1:]]
    for p in tables: p.unlink()
    (work/'back'/'all.csv').write_text('\n'.join(['video,start,end,label', *rows]))
    for command in BACK: run_in(work, cli, command)
    assert 'labels: person1.eaf' in (work/'back'/'recordings.yaml').read_text()


@pytest.fixture
def served(work, tmp_path):
    "`vlmtemporal serve`: its address."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with open(tmp_path/'log', 'w') as log:
        server = Command([*started(), 'serve', '--port', str(port)], stdout=log, stderr=log,
                         env=os.environ | dict(TMPDIR=str(tmp_path)))
    url, until = f'http://127.0.0.1:{port}', time.monotonic() + 300
    try:
        while True:
            assert server.poll() is None and time.monotonic() < until, (tmp_path/'log').read_text()
            try: urllib.request.urlopen(f'{url}/readyz', timeout=10).read()
            except OSError: time.sleep(.2)
            else: break
        yield url
    finally:
        server.terminate()
        server.wait(60)


def test_a_page_and_an_api(served, work, monkeypatch):
    "Each `curl` of the README, and its client of the page."
    if not shutil.which('curl'): pytest.skip('curl is not installed here')
    monkeypatch.chdir(work)
    shutil.copy('videos/person0.mp4', 'box.mp4')
    lines = [c for c in commands(TEXTS['README.md']) if c.startswith('curl ')]
    answers = [_curled(line.replace('http://127.0.0.1:8000', served)) for line in lines]
    kinds = ('"dominant_operation"', '"segments"', 'event: ', '/jobs/')
    assert len(answers) >= 4 and all(any(kind in a for a in answers) for kind in kinds), answers
    client, = (b for b in blocks(TEXTS['README.md'], 'python') if 'gradio_client' in b)
    exec(compile(client.replace('http://127.0.0.1:8000', served), 'README.md', 'exec'), {})


def _curled(line):
    done = subprocess.run([*shlex.split(line), '-sSi', '--fail-with-body'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_picture_of_the_readme(brief, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('picture', ROOT/'tools'/'picture.py')
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    monkeypatch.setattr(picture, 'PICTURE', tmp_path/'timeline.png')
    monkeypatch.setattr(picture, 'mock_data', lambda: brief)
    picture.draw()
    assert (tmp_path/'timeline.png').read_bytes()[:4] == b'\x89PNG' and 'as labelled' in capsys.readouterr().out
