"""`vlmtemporal` in a process of its own, without the seconds in which a process imports torch: one process has imported
the libraries, and is forked for each command. Who starts a command starts a small one that hands over its arguments,
folder, environment, limits and open files, passes signals on, and ends as the command does. Without Linux, and for what
a start itself is about, there is `FRESH`."""
import fcntl, gc, json, os, resource, shlex, signal, socket, subprocess, sys, tempfile
from pathlib import Path

FRESH = str(Path(sys.executable).parent/'vlmtemporal')
WHERE = 'VLMTEMPORAL_TESTS_FORKED' # the folder of the socket, one a run of pytest
BEGUN: list[subprocess.Popen] = [] # by this process
QWEN = 'transformers.models.qwen2_5_vl'
LIBRARIES = ('torch', 'transformers', 'peft', 'peft.tuners.lora.bnb', 'matplotlib.pyplot', 'rich.markdown',
             'trl.trainer.sft_trainer', 'gradio', 'fastapi', 'uvicorn', f'{QWEN}.modeling_qwen2_5_vl',
             f'{QWEN}.processing_qwen2_5_vl', 'vlmtemporal.cli', 'vlmtemporal.eval', 'vlmtemporal.experiments',
             'vlmtemporal.planning', 'vlmtemporal.train')


class Command(subprocess.Popen):
    "A command that was `started`: SIGKILL reaches it before it reaches who started it."
    def send_signal(self, number):
        forked = list(self.args[1:3]) == ['-I', '-S']
        super().send_signal(signal.SIGUSR1 if forked and number == signal.SIGKILL else number)

    @property
    def working(self) -> int:
        "The number of the process that does the work."
        if list(self.args[1:3]) != ['-I', '-S']: return self.pid
        return int(Path(self.args[4]).with_name(f'{self.pid}.pid').read_text())


def started(*program) -> list:
    "What a command line begins with: `vlmtemporal`, or a script of Python, or what follows `python`: `-c`, `-m`."
    program = [*map(str, program)] or ['vlmtemporal']
    if sys.platform != 'linux': return [FRESH] if program == ['vlmtemporal'] else [sys.executable, *program]
    return [sys.executable, '-I', '-S', __file__, str(_at_hand()), *program]


def python() -> str:
    """What stands for `sys.executable` where a process starts `python -m vlmtemporal.cli` or a bench; Python itself for
    all else. Who is forked has another parent, and does not end with the one that asked."""
    if sys.platform != 'linux': return sys.executable
    program, made = (Path(os.environ[WHERE])/name for name in ('python', f'python.{os.getpid()}'))
    ours, real = shlex.join(started('python')[:-1]), shlex.quote(sys.executable)
    made.write_text(f"""#!/bin/sh
case "$*" in
'-m vlmtemporal.cli '*|'-P -m vlmtemporal.cli '*|*/bench/*.py' '*) unset VLMTEMPORAL_PARENT; exec {ours} "$@";;
*) exec {real} "$@";;
esac
""")
    made.chmod(0o755)
    return str(made.replace(program))


def _at_hand() -> Path:
    "The socket of the process that is forked, which is begun when there is none."
    address = Path(os.environ[WHERE])/'socket'
    with open(address.with_name('lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if address.exists(): return address
        environment = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST_')}
        with open(address.with_name('log'), 'w') as log:
            command = [sys.executable, __file__, '--serve', str(address), environment['VLMTEMPORAL_TESTS_PID']]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                       env=environment, start_new_session=True)
        BEGUN.append(process)
        with process.stdout as said:
            if said.readline() != b'ready\n': raise RuntimeError(address.with_name('log').read_text())
    return address


# ---- the process that is forked --------------------------------------------------------------------------------------
def serve(address: str, pytest_pid: int) -> dict:
    "Fork for each request until pytest has ended. Returns in a child alone: what it shall do."
    import importlib
    import selectors
    for name in LIBRARIES: importlib.import_module(name)
    gc.collect()
    gc.freeze() # no child looks through what was imported
    waiting, listening = selectors.DefaultSelector(), socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    waiting.register(listening, selectors.EVENT_READ)
    os.write(1, b'ready\n')
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1): os.dup2(null, fd) # whoever began it may go
    children = {} # pidfd: (pid, connection)
    while _is_there(pytest_pid):
        for key, _ in waiting.select(timeout=5):
            if key.fileobj is listening:
                connection = listening.accept()[0]
                request, files = _receive(connection)
                if not files: continue # it has gone again
                pid = os.fork()
                connections = [c for _, c in children.values()]
                others = [null, *children, *connections, connection, listening, waiting]
                if not pid: return _become(request, files, others)
                for fd in files: os.close(fd)
                child = os.pidfd_open(pid)
                children[child] = pid, connection
                connection.sendall(b'%d\n' % pid)
                waiting.register(child, selectors.EVENT_READ)
                waiting.register(connection, selectors.EVENT_READ, child)
            elif key.fileobj in children: _tell(key.fileobj, children, waiting)
            elif key.data in children: # who started it was killed
                waiting.unregister(key.fileobj)
                signal.pidfd_send_signal(key.data, signal.SIGKILL)
    for child in children: signal.pidfd_send_signal(child, signal.SIGKILL)
    os._exit(0)


def _is_there(pid: int) -> bool:
    "Is it more than an entry that nobody has taken down?"
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False


def _receive(connection) -> tuple:
    "A request and the files that came with it."
    data, files, *_ = socket.recv_fds(connection, 1 << 16, 3)
    while data and not data.endswith(b'\0'):
        more = connection.recv(1 << 16)
        if not more: return None, []
        data += more
    return (json.loads(data[:-1]) if data else None), files


def _tell(child: int, children: dict, waiting):
    "A child has ended: how, to who started it."
    pid, connection = children.pop(child)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    waiting.unregister(child)
    os.close(child)
    try:
        waiting.unregister(connection)
        connection.sendall(b'%d\n' % code)
    except (KeyError, OSError): pass
    connection.close()


def _become(request: dict, files: list, others: list) -> dict:
    "In a child: nothing of the process that was forked, all of the one that asked."
    for fd in (0, 1, 2): os.dup2(files[fd], fd)
    for fd in (*files, *others): os.close(fd) if isinstance(fd, int) else fd.close()
    tempfile.tempdir = None
    os.chdir(request['folder'])
    os.environ.clear()
    os.environ.update(request['environment'])
    for name, soft in request['limits'].items():
        resource.setrlimit(getattr(resource, name), (soft, resource.getrlimit(getattr(resource, name))[1]))
    return request


def work(program: list):
    "What the command does."
    import random
    import runpy
    random.seed()
    sys.executable = os.environ.get('VLMTEMPORAL_TESTS_PYTHON', sys.executable)
    what, *arguments = [word for word in program[:1] if word != '-P'] + program[1:]
    if [what, *arguments[:1]] == ['-m', 'vlmtemporal.cli']: what, *arguments = 'vlmtemporal', *arguments[1:]
    if what == 'vlmtemporal':
        from vlmtemporal.cli import main
        sys.path[0] = str(Path(FRESH).parent)
        sys.argv = [FRESH, *arguments]
        main()
    elif what == '-c':
        sys.path[0] = ''
        sys.argv = ['-c', *arguments[1:]]
        exec(compile(arguments[0], '<string>', 'exec'), {'__name__': '__main__', '__builtins__': __builtins__})
    elif what == '-m':
        sys.path[0] = os.getcwd()
        sys.argv = ['-m', *arguments[1:]]
        runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
    else:
        sys.path[0] = str(Path(what).parent)
        sys.argv = [what, *arguments]
        runpy.run_path(what, run_name='__main__')


# ---- who starts a command --------------------------------------------------------------------------------------------
def ask(address: str, program: list):
    "Have it run, and end as it ends."
    pid = os.getpid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, _: os.kill(pid, signal.SIGKILL if number == signal.SIGUSR1 else number))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    limits = {n: resource.getrlimit(getattr(resource, n))[0] for n in dir(resource) if n.startswith('RLIMIT_')}
    asked = dict(program=program, folder=os.getcwd(), environment=dict(os.environ), limits=limits)
    request = json.dumps(asked).encode() + b'\0'
    sent = socket.send_fds(connection, [request], [0, 1, 2])
    connection.sendall(request[sent:])
    answers = connection.makefile('rb')
    pid = int(answers.readline())
    if 'RLIMIT_FSIZE' in limits: # which holds for the command, and not for the note of its number
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],)*2)
    Path(address).with_name(f'{os.getpid()}.pid').write_text(str(pid))
    code = int(answers.readline() or -signal.SIGKILL)
    if code >= 0: os._exit(code)
    if code != -signal.SIGKILL: signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


if __name__ == '__main__':
    if sys.argv[1] == '--serve': work(serve(sys.argv[2], int(sys.argv[3]))['program'])
    else: ask(sys.argv[1], sys.argv[2:])
