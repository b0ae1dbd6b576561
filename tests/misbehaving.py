"Decoders that do what a decoder should not; a child process of `guard` imports them by name."
import ctypes, os, signal, time, warnings

import numpy as np

from vlmtemporal import guard
from vlmtemporal.basics import BadInput, VLMTemporalWarning
from vlmtemporal.sources import Limits, Recounted, Video, describe


class Grey(Video):
    "100 grey frames of 96x64, whatever the file holds; frame i has the value i."
    size = 96, 64
    def __init__(self, path, limits: Limits, whole: bool):
        self.times = np.arange(100)/25
        self.info = describe(path, self.times, self.size, 'pyav', container='grey', codec='grey', notes=('is grey',))
    def frame(self, i: int) -> np.ndarray: return np.full((self.size[1], self.size[0], 3), i, np.uint8)
    def _read(self, indices, size, enough): return np.stack([self.frame(i) for i in indices])
    def _blocks(self, length, enough, first, stop):
        for i in range(first, stop): yield i, self.frame(i)[None]


# what may happen when a file is opened

def hangs(path, limits, whole): time.sleep(1000)

def spins(path, limits, whole):
    while True: pass

def hangs_in_c(path, limits, whole): ctypes.PyDLL(None).sleep(1000) # holds the interpreter's lock

def crashes(path, limits, whole): os.kill(os.getpid(), signal.SIGSEGV)

def is_killed(path, limits, whole): os.kill(os.getpid(), signal.SIGKILL)

def ends(path, limits, whole): os._exit(0)

def fails(path, limits, whole): raise ZeroDivisionError('in some library')

def refuses(path, limits, whole): raise BadInput('holds\nno video', path, 'give one \x1b[31mthat does')

def refuses_at_length(path, limits, whole): raise BadInput('x'*10**7, 'y'*10**7, 'z'*10**7)

def grows(path, limits, whole): return bytearray(2*limits.memory)

def spoils(path, limits, whole):
    Grey.size = 1, 1
    guard._LINE = 0
    os.environ['PYTHONPATH'] = ''
    raise BadInput('is spoilt', path)

def writes(path, limits, whole): os.write(os.open(f'{path}.written', os.O_CREAT | os.O_WRONLY), b'x')

def hoards(path, limits, whole): return [open(os.devnull) for _ in range(1000)] # noqa: SIM115

def warns(path, limits, whole):
    warnings.warn('the file is odd\n', VLMTemporalWarning, stacklevel=1)
    warnings.warn('not for users', UserWarning, stacklevel=1)
    return Grey(path, limits, whole)

def prints(path, limits, whole):
    os.write(1, b'this goes to standard output\n')
    os.write(2, b'and this to standard error\n')
    return Grey(path, limits, whole)


# what may happen later

class LateCrash(Grey):
    def frame(self, i):
        if i == 50: os.kill(os.getpid(), signal.SIGSEGV)
        return super().frame(i)

class LateHang(Grey):
    def frame(self, i):
        if i == 50: time.sleep(1000)
        return super().frame(i)

class Large(Grey):
    size = 4096, 4096


# a child that somebody else has taken over

def says(change):
    "A decoder whose child changes what it says by `change(its own function, message)`."
    def opener(path, limits, whole):
        say = guard._Answers.say
        guard._Answers.say = lambda self, **message: change(lambda **m: say(self, **m), self, message)
        return Grey(path, limits, whole)
    return opener

def replacing(key, value):
    "One value in all messages that have such a key is another one."
    return says(lambda say, answers, message: say(**message | ({key: value} if key in message else {})))

def raw(data):
    "Bytes instead of messages."
    def write(say, answers, message):
        answers.out.write(data)
        answers.out.flush()
    return says(write)

def shortened(say, answers, message):
    "The memory is cut short just before its contents are announced."
    open_ones = map(int, os.listdir('/proc/self/fd'))
    files = [d for d in open_ones if os.path.realpath(f'/proc/self/fd/{d}').startswith('/memfd')]
    assert files
    if 'place' in message: os.ftruncate(files[0], 0)
    say(**message)

no_json = raw(b'frames follow\n')
no_end = raw(b'x'*2**20)
no_object = raw(b'[1, 2, 3]\n')
no_number = raw(b'{"place": 0}\n')
no_utf8 = raw(b'\xff\xfe\n')
deep = raw(b'['*100_000 + b'\n')
digits = raw(b'{"number": ' + b'9'*10_000 + b'}\n')
another_number = says(lambda say, answers, message: setattr(answers, 'number', 10**6) or say(**message))
other_index = replacing('index', 7)
other_place = replacing('place', 3)
negative_place = replacing('place', -1)
text_place = replacing('place', 'first')
many_frames = replacing('shape', [10**6, 64, 96, 3])
no_frames = replacing('shape', [0, 64, 96, 3])
flat_frames = replacing('shape', [1, 64])
fractions = replacing('shape', [.5, 64, 96, 3])
infinite = replacing('shape', [float('inf'), 64, 96, 3])
no_info = replacing('info', None)
number_of_times = replacing('n', 10**9)
refused_wrongly = says(lambda say, answers, message: say(refused=7) if 'place' in message else say(**message))
cut_short = says(shortened)


def info_with(**values):
    return says(lambda say, answers, message: say(**message | (
        dict(info=message['info'] | values) if 'info' in message else {})))

large_info = info_with(width=10**6, height=10**6)
long_info = info_with(n_frames=10**12)
endless_info = info_with(fps=float('nan'))
wordy_info = info_with(codec=['h264'])
noted_info = info_with(notes='a text')


class Unsorted(Grey):
    def __init__(self, path, limits, whole):
        super().__init__(path, limits, whole)
        self.times = self.times[::-1]

class Timeless(Grey):
    def __init__(self, path, limits, whole):
        super().__init__(path, limits, whole)
        self.times = np.full(100, np.nan)

class Fewer(Grey):
    def _blocks(self, length, enough, first, stop): return super()._blocks(length, enough, first, stop - 10)

class Sizes(Grey):
    def _read(self, indices, size, enough): return [np.zeros((64 - i, 96, 3), np.uint8) for i in range(len(indices))]

class Recounts(Grey):
    "Finds while reading that there are 90 frames only; opened with that knowledge it says so at once."
    def __init__(self, path, limits, whole):
        super().__init__(path, limits, whole)
        self.whole = whole
        if whole: self.count()
    def count(self):
        self.times = np.arange(90)/25
        self.info = describe(self.info.path, self.times, self.size, 'pyav', notes=('10 frames are missing',))
    def _read(self, indices, size, enough):
        if len(self.times) == 100:
            self.count()
            raise Recounted('10 frames are missing', self.info.path, 'ask again')
        return super()._read(indices, size, enough)
