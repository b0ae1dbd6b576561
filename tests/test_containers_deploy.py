"The image and the compose file of deploy/: linted, read by kept tools, and its steps run in a fresh folder."
import fnmatch, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import httpx
import pytest
import yaml

from alone import environment, free_port, libraries, wait_for
from conftest import ROOT

DEPLOY = ROOT/'deploy'
DOCKERFILE = (DEPLOY/'Dockerfile').read_text()
COMPOSE = (DEPLOY/'compose.yaml').read_text()


def stages(text):
    "The stages of a Dockerfile: name -> [what it is from, (instruction, arguments), ...]."
    lines = (line for line in re.sub(r'\\\n', ' ', re.sub(r'(?m)^#.*\n', '', text)).splitlines() if line.strip())
    found, here = {}, None
    for line in lines:
        word, rest = line.split(maxsplit=1)
        if word == 'FROM':
            base, _, name = rest.partition(' AS ')
            here = found.setdefault(name, [base])
        elif here is not None: here.append((word, ' '.join(rest.split())))
    return found


STAGES = stages(DOCKERFILE)


def chain(target):
    "The steps of an image, those of the stages that it is from first."
    base, *steps = STAGES[target]
    return [*(chain(base) if base in STAGES else []), *steps]


def tool(name):
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return path or pytest.skip(f'{name} is not installed here')


def test_hadolint():
    done = subprocess.run([tool('hadolint'), '--no-color', DEPLOY/'Dockerfile'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    bad = DOCKERFILE.replace('USER 1000:1000', 'USER root').replace('-slim-bookworm', '').replace('${PYTHON}', 'latest')
    done = subprocess.run([tool('hadolint'), '--no-color', '-'], input=bad, capture_output=True, text=True)
    assert done.returncode == 1, 'it would have said so'


def makefile_install():
    "What `make setup` runs, in the image's words."
    make = (ROOT/'Makefile').read_text()
    venv = re.search(r'\$\(PYTHON\) (-m venv) \$\(VENV\)', make)[1]
    pip = re.search(r"\$\(BIN\)/python (-m pip install --quiet) --editable '\.\[dev\]'", make)[1]
    return f'python {venv} "$VENV"', f'"$VENV/bin/python" {pip}'


@pytest.mark.parametrize('target', ['cpu', 'cuda'])
def test_the_image(target):
    "Slim, not root, a health check, a volume for models; installed as the Makefile installs, with the extra `serve`."
    steps = chain(target)
    assert STAGES['base'][0].endswith('-slim-bookworm')
    assert [rest for word, rest in steps if word == 'USER'] == ['1000:1000'], 'and nothing is root again after it'
    assert ('VOLUME', '/cache') in steps and any(w == 'HEALTHCHECK' and '/readyz' in r for w, r in steps)
    venv, pip = makefile_install()
    packages = STAGES[f'{target}-packages']
    assert ('RUN', venv) in STAGES['sources']
    install, = [rest for word, rest in packages[1:] if word == 'RUN']
    assert pip in install and install.endswith("'.[serve]'") and ('whl/cpu' in install) == (target == 'cpu')
    assert STAGES[target][-1] == ('COPY', f'--from={target}-packages /opt/venv /opt/venv')
    assert list(STAGES)[-1] == 'cpu', 'what `docker build` makes when nobody names a target needs no GPU'


def sent(name):
    "Is a path of the repository part of what is sent to be built?"
    verdict = True
    for line in (DEPLOY/'Dockerfile.dockerignore').read_text().splitlines():
        if not line or line.startswith('#'): continue
        pattern, keep = line.removeprefix('!'), line.startswith('!')
        names = [name, *map(str, Path(name).parents)][:-1]
        anywhere = pattern.removeprefix('**/') if pattern.startswith('**/') else None
        if any(fnmatch.fnmatch(n, pattern) or anywhere and Path(n).match(anywhere) for n in names): verdict = keep
    return verdict


def test_what_is_sent_to_be_built():
    "What a wheel is made of; no history, no data, no secrets, no caches."
    from vlmtemporal.uploads import clone_files
    assert all(sent(name) for name in clone_files(ROOT))
    others = ['.git/config', '.env', 'mock_data/twin.json', 'nbs/index.ipynb', '.venv/x', 'vlmtemporal/__pycache__/x']
    assert not any(map(sent, others))


def composed(profile, folder):
    "A profile as podman-compose reads it."
    stub = folder/'podman'
    stub.write_text('#!/bin/sh\necho podman version 5.4.0\n')
    stub.chmod(0o755)
    command = [tool('podman-compose'), '-f', DEPLOY/'compose.yaml', '--profile', profile, 'config']
    env = environment()
    done = subprocess.run(command, capture_output=True, text=True, env=env | dict(PATH=f'{folder}:{env["PATH"]}'))
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize('target', ['cpu', 'cuda'])
def test_compose(target, tmp_path):
    "One service a profile; the port is this machine's own unless said otherwise; a GPU is reserved by `cuda` alone."
    services = composed(target, tmp_path)['services']
    service = services[target]
    assert list(services) == [target] and service['build']['target'] == target and target in STAGES
    assert service['ports'] == ['127.0.0.1:8000:8000'] and 'cache:/cache' in service['volumes']
    assert service['read_only'] and service['init'] and service['cap_drop'] == ['ALL']
    devices = service.get('deploy', {}).get('resources', {}).get('reservations', {}).get('devices', [])
    assert devices == ([] if target == 'cpu' else [dict(driver='nvidia', count=1, capabilities=['gpu'])])
    context = Path(service['build']['context'])
    assert (DEPLOY/context).resolve() == ROOT and (ROOT/service['build']['dockerfile']).is_file()


def test_compose_names_settings_that_there_are():
    from dataclasses import fields

    from vlmtemporal.intake import ServerSettings
    known = {f'VLMTEMPORAL_SERVE_{f.name.upper()}' for f in fields(ServerSettings)}
    named = set(re.findall(r'VLMTEMPORAL_SERVE_[A-Z]+', COMPOSE + DOCKERFILE))
    assert named - known == {'VLMTEMPORAL_SERVE_MODEL', 'VLMTEMPORAL_SERVE_ADAPTER'}


class Folder:
    "An image's steps, done below a fresh folder instead of /."
    def __init__(self, root, libs):
        self.root, self.cwd, self.files = root, '/', set()
        self.env = environment(PYTHONPATH=str(libs), PIP_NO_INDEX='1', PIP_NO_BUILD_ISOLATION='0', HOME=str(root))
    def at(self, text): return re.sub(r'(?<![\w.}/-])/(?=(opt|cache|home)\b)', f'{self.root}/', text)
    def do(self, word, rest):
        getattr(self, f'do_{word.lower()}', lambda rest: None)(rest)
    def do_env(self, rest):
        for name, value in (pair.split('=', 1) for pair in rest.split()):
            self.env[name] = self.at(value).replace('$PATH', self.env['PATH'])
    def do_workdir(self, rest):
        self.cwd = self.at(rest)
        os.makedirs(self.cwd, exist_ok=True)
    def do_copy(self, rest):
        *sources, to = rest.split()
        if sources[0].startswith('--from'): # the folder is one for all stages: what is copied must stay where it was
            assert sources[1] == to and Path(self.at(to)).is_dir()
            return
        for p in (p for s in sources for p in ([ROOT/s] if (ROOT/s).is_file() else sorted((ROOT/s).rglob('*')))):
            name = p.relative_to(ROOT).as_posix()
            if p.is_file() and sent(name):
                (Path(self.cwd)/name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(p, Path(self.cwd)/name)
    def do_run(self, rest):
        for command in re.sub(r'--mount=\S+', '', rest).split(' && '):
            if command.split()[0] == 'useradd': continue # there are no users here
            if os.getuid(): command = re.sub(r'--(owner|group)=\d+', '', command)
            command = ['sh', '-c', self.at(command)]
            done = subprocess.run(command, cwd=self.cwd, env=self.env, capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])


@pytest.mark.skipif(os.environ.get('VLMTEMPORAL_SERVE_CHECK') != '1', reason='takes a minute: make serve-check')
def test_the_steps_in_a_fresh_folder(tmp_path, video):
    "They install a server from the repository's files alone; it gets well, answers, and goes when it is told to."
    folder = Folder(tmp_path/'root', libraries(tmp_path/'libraries'))
    for step in [*chain('cpu-packages'), *chain('cpu')]: folder.do(*step)
    where = [str(tmp_path/'root/opt/venv/bin/python'), '-c', 'import vlmtemporal; print(vlmtemporal.__file__)']
    assert '/root/opt/venv/' in subprocess.run(where, env=folder.env, capture_output=True, text=True, cwd='/').stdout
    port, temporary = free_port(), tmp_path/'tmp'
    temporary.mkdir()
    env = folder.env | dict(VLMTEMPORAL_SERVE_PORT=str(port), TMPDIR=str(temporary), HOME=folder.cwd)
    steps = dict(chain('cpu'))
    command = json.loads(steps['CMD'])
    path = shutil.which(command[0], path=env['PATH'])
    server = subprocess.Popen([path, *command[1:]], cwd=folder.cwd, env=env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(f'http://127.0.0.1:{port}/readyz', server)
        health = json.loads(steps['HEALTHCHECK'].partition('CMD ')[2])
        health[0] = shutil.which(health[0], path=env['PATH'])
        assert subprocess.run(health, env=env).returncode == 0
        with video.open('rb') as f:
            answer = httpx.post(f'http://127.0.0.1:{port}/predict', files=dict(video=f), timeout=120)
        assert answer.status_code == 200 and answer.json()['dominant_operation'], answer.text
        begin = time.monotonic()
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=15)
        assert time.monotonic() - begin < 10 and server.returncode in (0, 143, -15), said
        assert not list(temporary.iterdir()) and subprocess.run(health, env=env, capture_output=True).returncode != 0
    finally: server.kill()
